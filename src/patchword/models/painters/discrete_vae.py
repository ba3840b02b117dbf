"""Pictures as a few discrete tokens: the discrete variational autoencoder of DALL-E.

Ramesh et al. 2021, "Zero-Shot Text-to-Image Generation" (arXiv 2102.12092), section 2.1 and appendix A:

    q(k | x) = softmax of E(x) at each cell                            K codes, cells of 2^(groups - 1) pixels
    y = Gumbel-softmax of E(x) at temperature t, which falls                                 (relaxation of q)
    x^ = D(sum_k y_k codebook_k)
    loss = - log p(x | x^) + b KL(q || uniform)              KL = ln K - H(q), a mean over the cells

p is the logit-Laplace distribution (appendix A.3), whose support is (0, 1) like that of pixels:

    f(x | m, c) = exp(-|logit x - m| / c) / (2 c x (1 - x)),  x = (1 - 2 e) pixel + e,  e = 0.1

Every block adds a bottleneck whose output is divided by the square of the number of blocks.

Shape legend: B pictures, C channels of a map, N cells, K codes.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Literal, NamedTuple

import torch
import torch.nn.functional as F
from pydantic import BaseModel, Field, model_validator
from torch import Tensor, nn

MARGIN = 0.1
"""Pixels are mapped to [MARGIN, 1 - MARGIN], away from the ends of the logit."""


class DiscreteVaeConfig(BaseModel, extra="forbid", frozen=True):
    """Settings of encoder, codebook and decoder."""

    kind: Literal["discrete_vae"] = "discrete_vae"
    size: int = Field(32, ge=8, le=1024, description="side of the square pictures, in pixels")
    codes: int = Field(128, gt=1, le=65536, description="entries K of the codebook (paper: 8,192)")
    groups: int = Field(
        3, ge=2, le=6, description="groups of blocks; each but the last halves the map (paper: 4)"
    )
    blocks: int = Field(1, ge=1, le=8, description="blocks of a group (paper: 2)")
    width: int = Field(
        32, ge=1, le=1024, description="channels of the first group, doubled in each (paper: 256)"
    )
    start_width: int = Field(32, ge=1, le=1024, description="channels of a code in the decoder (paper: 128)")
    warmest: float = Field(1.0, gt=0, description="temperature of the relaxation at the start")
    coldest: float = Field(1 / 16, gt=0, description="temperature at the end; it falls as a cosine")
    divergence: float = Field(
        0.1,
        ge=0,
        description="weight b of the KL term, a mean over cells, at the end; it rises from 0; too low, and a "
        "few codes are used",
    )

    @model_validator(mode="after")
    def _cells(self) -> DiscreteVaeConfig:
        if self.size % 2 ** (self.groups - 1):
            raise ValueError(
                f"size is {self.size} and {self.groups} groups halve the map {self.groups - 1} times: "
                "choose a "
                f"multiple of {2 ** (self.groups - 1)}"
            )
        return self

    @property
    def side(self) -> int:
        """Cells along a side of the picture."""
        return self.size >> (self.groups - 1)


class Block(nn.Module):
    """A bottleneck of four convolutions with the given kernels beside a shortcut."""

    def __init__(self, width_in: int, width_out: int, kernels: Sequence[int], gain: float) -> None:
        super().__init__()
        hidden = max(1, width_out // 4)
        widths = (width_in, hidden, hidden, hidden, width_out)
        self.gain = gain
        self.convs = nn.ModuleList(
            nn.Conv2d(before, after, kernel, padding=kernel // 2)
            for before, after, kernel in zip(widths, widths[1:], kernels, strict=False)
        )
        self.shortcut = nn.Identity() if width_in == width_out else nn.Conv2d(width_in, width_out, 1)

    def forward(self, map_BCHW: Tensor) -> Tensor:
        """The map with its new width."""
        inner_BCHW = map_BCHW
        for conv in self.convs:
            inner_BCHW = conv(F.relu(inner_BCHW))
        return self.shortcut(map_BCHW) + self.gain * inner_BCHW


class Encoder(nn.Module):
    """Pictures to logits of the codes at every cell."""

    def __init__(self, config: DiscreteVaeConfig) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, config.width, 7, padding=3)
        widths = [config.width * 2**group for group in range(config.groups)]
        self.groups = _groups(config, [config.width, *widths], (3, 3, 3, 1))
        self.logits = nn.Conv2d(widths[-1], config.codes, 1)

    def forward(self, pictures_B3HW: Tensor) -> Tensor:
        """Logits (B, K, h, w) of pictures in [0, 1]."""
        map_BCHW = self.stem(_mapped(pictures_B3HW))
        for number, group in enumerate(self.groups):
            map_BCHW = group(F.max_pool2d(map_BCHW, 2) if number else map_BCHW)
        return self.logits(F.relu(map_BCHW))


class Decoder(nn.Module):
    """A mixture of codes at every cell to mean and log scale of every pixel's logit."""

    def __init__(self, config: DiscreteVaeConfig) -> None:
        super().__init__()
        self.codebook = nn.Conv2d(config.codes, config.start_width, 1)
        widths = [config.width * 2**group for group in reversed(range(config.groups))]
        self.groups = _groups(config, [config.start_width, *widths], (1, 3, 3, 3))
        self.pixels = nn.Conv2d(widths[-1], 6, 1)

    def forward(self, shares_BKHW: Tensor) -> Tensor:
        """Mean and log scale of the logits, (B, 6, H, W)."""
        map_BCHW = self.codebook(shares_BKHW)
        for number, group in enumerate(self.groups):
            map_BCHW = group(F.interpolate(map_BCHW, scale_factor=2.0) if number else map_BCHW)
        return self.pixels(F.relu(map_BCHW))


class CodecLoss(NamedTuple):
    """Losses of a codec, means over pictures and cells or pixels."""

    reconstruction: Tensor
    regulariser: Tensor
    """The regulariser, its weight included."""
    ids_BN: Tensor
    """Codes of the pictures, which say how many are used."""


class DiscreteVae(nn.Module):
    """A codec: pictures in [0, 1] to N codes each and back.

    Attributes:
        config: its settings.
        side: cells along a side; N = side squared.
        codes: K.
    """

    def __init__(self, config: DiscreteVaeConfig) -> None:
        super().__init__()
        self.config, self.side, self.codes = config, config.side, config.codes
        self.encoder, self.decoder = Encoder(config), Decoder(config)

    def encode(self, pictures_B3HW: Tensor) -> Tensor:
        """Codes (B, N) of pictures in [0, 1], row by row."""
        return self.encoder(pictures_B3HW).argmax(1).flatten(1)

    def decode(self, ids_BN: Tensor) -> Tensor:
        """Pictures (B, 3, H, W) in [0, 1] of codes."""
        chosen_BKHW = F.one_hot(ids_BN, self.codes).to(self.decoder.codebook.weight.dtype)
        chosen_BKHW = chosen_BKHW.transpose(1, 2).unflatten(2, (self.side, self.side))
        mean_B3HW = self.decoder(chosen_BKHW)[:, :3]
        return _unmapped(torch.sigmoid(mean_B3HW))

    def relaxed(self, latent_BNK: Tensor) -> Tensor:
        """Pictures (B, 3, H, W) in [0, 1] of the likeliest codes of latents, which are logits, with the
        gradient straight through the choice (`models/pretraining/imagination.py`)."""
        shares_BNK = latent_BNK.softmax(-1)
        chosen_BNK = F.one_hot(latent_BNK.argmax(-1), self.codes).to(shares_BNK.dtype)
        through_BNK = shares_BNK + (chosen_BNK - shares_BNK).detach()
        through_BKHW = through_BNK.transpose(1, 2).unflatten(2, (self.side, self.side))
        return _unmapped(torch.sigmoid(self.decoder(through_BKHW)[:, :3]))

    def losses(self, pictures_B3HW: Tensor, progress: float) -> CodecLoss:
        """The losses of pictures in [0, 1] at a share of the training; outside training without noise."""
        logits_BKHW = self.encoder(pictures_B3HW)
        temperature = _cosine(self.config.warmest, self.config.coldest, progress)
        if self.training:
            shares_BKHW = F.gumbel_softmax(logits_BKHW.float(), temperature, dim=1)
        else:
            shares_BKHW = F.one_hot(logits_BKHW.argmax(1), self.codes).permute(0, 3, 1, 2).float()
        found_B6HW = self.decoder(shares_BKHW).float()
        reconstruction = -laplace_log_likelihood(pictures_B3HW, found_B6HW).mean()
        weight = self.config.divergence * min(1.0, 4 * progress)
        regulariser = weight * divergence_from_uniform(logits_BKHW.float()).mean()
        return CodecLoss(reconstruction, regulariser, logits_BKHW.argmax(1).flatten(1))


def laplace_log_likelihood(pictures_B3HW: Tensor, found_B6HW: Tensor) -> Tensor:
    """log f of every pixel (B, 3, H, W): logit-Laplace, mean and log scale in `found_B6HW`."""
    mean_B3HW, log_scale_B3HW = found_B6HW.chunk(2, 1)
    x_B3HW = _mapped(pictures_B3HW)
    off_B3HW = (torch.logit(x_B3HW) - mean_B3HW).abs() * (-log_scale_B3HW).exp()
    return -off_B3HW - log_scale_B3HW - math.log(2) - torch.log(x_B3HW * (1 - x_B3HW))


def divergence_from_uniform(logits_BKHW: Tensor) -> Tensor:
    """KL(q || uniform) = ln K - H(q) at every cell (B, h, w), in nats."""
    log_q_BKHW = logits_BKHW.log_softmax(1)
    return math.log(logits_BKHW.shape[1]) + (log_q_BKHW.exp() * log_q_BKHW).sum(1)


def _groups(config: DiscreteVaeConfig, widths: Sequence[int], kernels: Sequence[int]) -> nn.ModuleList:
    gain = 1 / (config.groups * config.blocks) ** 2
    return nn.ModuleList(
        nn.Sequential(
            *(Block(before if block == 0 else after, after, kernels, gain) for block in range(config.blocks))
        )
        for before, after in zip(widths, widths[1:], strict=False)
    )


def _mapped(pictures: Tensor) -> Tensor:
    return (1 - 2 * MARGIN) * pictures + MARGIN


def _unmapped(x: Tensor) -> Tensor:
    return ((x - MARGIN) / (1 - 2 * MARGIN)).clamp(0, 1)


def _cosine(first: float, last: float, progress: float) -> float:
    return last + (first - last) * (1 + math.cos(math.pi * min(1.0, progress))) / 2
