"""A U-Net that takes the noise out of a picture, told what the picture shows: the denoiser of GLIDE.

Nichol et al. 2021, "GLIDE: Towards Photorealistic Image Generation and Editing with Text-Guided Diffusion
Models" (arXiv 2112.10741), over the U-Net of Dhariwal and Nichol 2021 (arXiv 2105.05233). The text acts in
two places (GLIDE, section 2.1):

    h = MLP(sinusoid(t)) + W_s s            s: the text tower's state at the last token    (time and sentence)
    context = softmax(Q [K_text; K]^T / sqrt(D)) [V_text; V]                                (words and cells)

where Q, K, V are projections of the map's cells and K_text, V_text those of all text tokens: one softmax over
text and picture. A residual block scales and shifts its second norm by h. unCLIP's decoder (Ramesh et al.
2022, arXiv 2204.06125, section 2.1) adds a picture embedding z: W_z z joins h, and four more tokens join the
text. A step of a cascade sees a smaller picture, enlarged, beside the noisy one (Ho et al. 2022, arXiv
2106.15282).

Shape legend: B pictures, C channels of a map, H W sides of the picture, N cells of a map, L text tokens with
the four of a picture embedding, E width of a picture embedding, D width of a head.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any, Literal, NamedTuple

import torch
import torch.nn.functional as F
from pydantic import BaseModel, Field, model_validator
from torch import Tensor, nn

from patchword.layers.attention import attend, hide
from patchword.types import TextFeatures

PICTURE_TOKENS = 4
"""Tokens that a picture embedding becomes (unCLIP, section 2.1)."""


class DenoiserConfig(BaseModel, extra="forbid", frozen=True):
    """Settings of the denoiser and of the diffusion that it was trained for."""

    kind: Literal["denoiser"] = "denoiser"
    size: int = Field(32, ge=8, le=1024, description="side of the square pictures, in pixels")
    channels: int = Field(3, gt=0, le=64, description="channels of a picture, or of a latent")
    patch: int = Field(
        1, ge=1, le=8, description="side of the blocks of pixels that become one cell: less time per step"
    )
    width: int = Field(64, ge=8, le=4096, description="channels of the largest map (GLIDE: 192)")
    multipliers: tuple[int, ...] = Field(
        (1, 2, 2), min_length=1, description="channels per level in widths; every level halves the map"
    )
    blocks: int = Field(1, gt=0, le=8, description="residual blocks per level (GLIDE: 3)")
    attention_at: tuple[int, ...] = Field(
        (8, 4), description="sides of the maps, in cells, that attend to text and picture (GLIDE: 32, 16, 8)"
    )
    head_width: int = Field(32, ge=4, le=512, description="width of an attention head (GLIDE: 64)")
    dropout: float = Field(0.0, ge=0, lt=1, description="dropout within residual blocks")
    steps: int = Field(1000, gt=1, le=100_000, description="times of the noise schedule")
    schedule: Literal["cosine", "linear", "scaled_linear"] = Field("cosine", description="noise schedule")
    target: Literal["noise", "picture", "velocity"] = Field("noise", description="what is predicted")
    learnt_variance: bool = Field(
        False, description="predict the variance of a step as well, trained by the variational bound"
    )
    drop_text: float = Field(
        0.1, ge=0, lt=1, description="share of texts left out while training; 0: no guidance afterwards"
    )
    guidance: float = Field(
        2.0, ge=0, allow_inf_nan=False, description="how much the text counts where nobody says it"
    )
    picture_width: int | None = Field(
        None,
        gt=0,
        description="width of a picture embedding that it is told (unCLIP's decoder); absent: none",
    )
    drop_picture: float = Field(0.1, ge=0, lt=1, description="share of picture embeddings left out likewise")
    small_size: int | None = Field(
        None, ge=4, description="side of a smaller picture that it enlarges (a cascade); absent: none"
    )
    small_noise: float = Field(
        0.0,
        ge=0,
        lt=1,
        description="most noise on the smaller picture while training, as a share of the times",
    )

    @model_validator(mode="after")
    def _sizes_divide(self) -> DenoiserConfig:
        side = self.patch * 2 ** (len(self.multipliers) - 1)
        if self.size % side:
            raise ValueError(
                f"size is {self.size} and {len(self.multipliers)} levels of patches of {self.patch} "
                "pixels need "
                f"a multiple of {side}: choose one, or fewer levels"
            )
        for multiplier in self.multipliers:
            if self.width * multiplier % self.head_width:
                raise ValueError(
                    f"a level has {self.width * multiplier} channels, which heads of {self.head_width} "
                    "do not divide: change head_width or width"
                )
        sides = [self.size // self.patch // 2**level for level in range(len(self.multipliers))]
        wrong = [at for at in self.attention_at if at not in sides]
        if wrong:
            raise ValueError(f"attention_at names a map of side {wrong[0]}; the maps have {sides}")
        return self


class Memory(NamedTuple):
    """What a denoiser is told, projected once for all steps; every tensor has B rows."""

    told_BC: Tensor
    """What joins the time: the sentence, and the picture embedding where there is one."""
    keys: tuple[Tensor, ...]
    """(B, heads, L, D) of every attention, in the order in which they run."""
    values: tuple[Tensor, ...]
    hidden_B11L: Tensor
    """0 at real tokens, minus infinity at padding."""
    small_BCHW: Tensor | None = None
    """The smaller picture of a cascade, enlarged."""


class ResidualBlock(nn.Module):
    """Norm, convolution, norm scaled and shifted by the time, convolution; the last one begins at zero."""

    def __init__(self, width_in: int, width_out: int, time_width: int, dropout: float) -> None:
        super().__init__()
        self.norm_in, self.norm_out = _norm(width_in), _norm(width_out)
        self.conv_in = nn.Conv2d(width_in, width_out, 3, padding=1)
        self.conv_out = _zeroed(nn.Conv2d(width_out, width_out, 3, padding=1))
        self.scale_shift = nn.Linear(time_width, 2 * width_out)
        self.dropout = nn.Dropout(dropout)
        self.skip = nn.Identity() if width_in == width_out else nn.Conv2d(width_in, width_out, 1)

    def forward(self, map_BCHW: Tensor, time_BC: Tensor) -> Tensor:
        """The map with its new width."""
        inner = self.conv_in(F.silu(self.norm_in(map_BCHW)))
        scale, shift = self.scale_shift(F.silu(time_BC))[:, :, None, None].chunk(2, 1)
        inner = self.norm_out(inner) * (1 + scale) + shift
        return self.skip(map_BCHW) + self.conv_out(self.dropout(F.silu(inner)))


class TextAttention(nn.Module):
    """Cells of a map attend to text tokens and to each other, in one softmax."""

    def __init__(self, width: int, text_width: int, head_width: int) -> None:
        super().__init__()
        self.heads = width // head_width
        self.norm = _norm(width)
        self.project = nn.Linear(width, 3 * width)
        self.project_text = nn.Linear(text_width, 2 * width)
        self.out = _zeroed(nn.Linear(width, width))

    def encode(self, tokens_BLC: Tensor) -> tuple[Tensor, Tensor]:
        """Keys and values of the text (B, heads, L, D), which are the same at every step."""
        keys_BLC, values_BLC = self.project_text(tokens_BLC).chunk(2, -1)
        return self._split(keys_BLC), self._split(values_BLC)

    def forward(
        self, map_BCHW: Tensor, keys: Tensor, values: Tensor, hidden_B11L: Tensor, want_weights: bool = False
    ) -> tuple[Tensor, Tensor | None]:
        """The map, and where asked for the weights on the text tokens (B, heads, N, L)."""
        cells_BNC = self.norm(map_BCHW).flatten(2).transpose(1, 2)
        queries, own_keys, own_values = map(self._split, self.project(cells_BNC).chunk(3, -1))
        bias = F.pad(hidden_B11L, (0, cells_BNC.shape[1]))
        context, weights = attend(
            queries, torch.cat([keys, own_keys], 2), torch.cat([values, own_values], 2), bias, want_weights
        )
        moved_BNC = self.out(context.transpose(1, 2).flatten(2))
        weights = None if weights is None else weights[..., : keys.shape[2]]
        return map_BCHW + moved_BNC.transpose(1, 2).unflatten(2, map_BCHW.shape[2:]), weights

    def _split(self, tokens_BNC: Tensor) -> Tensor:
        return tokens_BNC.unflatten(-1, (self.heads, -1)).transpose(1, 2)


class Level(nn.Module):
    """A residual block, and attention where the level has it."""

    def __init__(
        self, config: DenoiserConfig, width_in: int, width: int, text_width: int, attends: bool
    ) -> None:
        super().__init__()
        self.block = ResidualBlock(width_in, width, 4 * config.width, config.dropout)
        self.attention = TextAttention(width, text_width, config.head_width) if attends else None


class Denoiser(nn.Module):
    """Predicts noise, picture or velocity from a noisy picture, its time, and what it is told.

    Attributes:
        config: its settings.
        out_channels: C, or 2 C where the variance is learnt.
    """

    def __init__(self, config: DenoiserConfig, text_width: int) -> None:
        """`text_width` is C of the text features."""
        super().__init__()
        self.config = config
        base, cells = config.width, config.patch**2
        self.out_channels = config.channels * (2 if config.learnt_variance else 1)
        self.time = nn.Sequential(nn.Linear(base, 4 * base), nn.SiLU(), nn.Linear(4 * base, 4 * base))
        self.sentence = nn.Linear(text_width, 4 * base)
        if config.picture_width is not None:
            self.picture = nn.Linear(config.picture_width, 4 * base)
            self.picture_tokens = nn.Linear(config.picture_width, PICTURE_TOKENS * text_width)
        seen = config.channels * (1 if config.small_size is None else 2)
        self.stem = nn.Conv2d(seen * cells, base, 3, padding=1)
        widths = [base * multiplier for multiplier in config.multipliers]
        side, last = config.size // config.patch, len(widths) - 1
        attends = [side // 2**level in config.attention_at for level in range(len(widths))]
        self.down, self.shrink, self.up, self.grow = (nn.ModuleList() for _ in range(4))
        skips, now = [base], base
        for level, width in enumerate(widths):
            for _ in range(config.blocks):
                self.down.append(Level(config, now, width, text_width, attends[level]))
                now = width
                skips.append(now)
            if level < last:
                self.shrink.append(nn.Conv2d(now, now, 3, stride=2, padding=1))
                skips.append(now)
        self.middle = nn.ModuleList(
            Level(config, now, now, text_width, attends[-1] and first) for first in (True, False)
        )
        for level in reversed(range(len(widths))):
            for _ in range(config.blocks + 1):
                self.up.append(Level(config, now + skips.pop(), widths[level], text_width, attends[level]))
                now = widths[level]
            if level:
                self.grow.append(nn.Conv2d(now, now, 3, padding=1))
        self.norm = _norm(now)
        self.out = _zeroed(nn.Conv2d(now, self.out_channels * cells, 3, padding=1))

    def attentions(self) -> list[TextAttention]:
        """All attentions in the order in which they run."""
        levels = [*self.down, *self.middle, *self.up]
        return [level.attention for level in levels if level.attention is not None]

    def encode(
        self, text: TextFeatures, picture_BE: Tensor | None = None, small_BCHW: Tensor | None = None
    ) -> Memory:
        """What the denoiser is told, projected once.

        Args:
            text: tokens with their mask; the last real one stands for the sentence.
            picture_BE: embeddings of pictures (unCLIP); rows of zeros say nothing.
            small_BCHW: smaller pictures, enlarged here (a cascade).
        """
        tokens_BLC, mask_BL = text.tokens_BLC, text.mask_BL
        if mask_BL is None:
            mask_BL = tokens_BLC.new_ones(tokens_BLC.shape[:2], dtype=torch.bool)
        last_B = mask_BL.long().cumsum(1).argmax(1)
        told_BC = self.sentence(tokens_BLC[torch.arange(len(tokens_BLC), device=tokens_BLC.device), last_B])
        if picture_BE is not None:
            told_BC = told_BC + self.picture(picture_BE)
            more_B4C = self.picture_tokens(picture_BE).unflatten(1, (PICTURE_TOKENS, -1))
            tokens_BLC = torch.cat([tokens_BLC, more_B4C], 1)
            mask_BL = F.pad(mask_BL, (0, PICTURE_TOKENS), value=True)
        pairs = [attention.encode(tokens_BLC) for attention in self.attentions()]
        if small_BCHW is not None:
            sides = (self.config.size, self.config.size)
            small_BCHW = F.interpolate(small_BCHW, sides, mode="bilinear", align_corners=False)
        hidden_B11L = hide(mask_BL.bool(), tokens_BLC.dtype)[:, None, None, :]
        keys, values = tuple(zip(*pairs, strict=True)) or ((), ())
        return Memory(told_BC, keys, values, hidden_B11L, small_BCHW)

    def forward(
        self, noisy_BCHW: Tensor, times_B: Tensor, memory: Memory, maps: list[Tensor] | None = None
    ) -> Tensor:
        """The prediction (B, out_channels, H, W).

        `maps` collects the weights of every attention on the text tokens (B, heads, N, L).
        """
        if memory.small_BCHW is not None:
            noisy_BCHW = torch.cat([noisy_BCHW, memory.small_BCHW], 1)
        time_BC = self.time(sinusoids(times_B, self.config.width).to(noisy_BCHW.dtype)) + memory.told_BC
        told = iter(zip(memory.keys, memory.values, strict=True))
        now = self.stem(F.pixel_unshuffle(noisy_BCHW, self.config.patch))
        skips = [now]
        for number, level in enumerate(self.down, start=1):
            now = self._run(level, now, time_BC, told, memory, maps)
            skips.append(now)
            if number % self.config.blocks == 0 and number // self.config.blocks <= len(self.shrink):
                now = self.shrink[number // self.config.blocks - 1](now)
                skips.append(now)
        for level in self.middle:
            now = self._run(level, now, time_BC, told, memory, maps)
        for number, level in enumerate(self.up, start=1):
            now = self._run(level, torch.cat([now, skips.pop()], 1), time_BC, told, memory, maps)
            place = number // (self.config.blocks + 1)
            if number % (self.config.blocks + 1) == 0 and place <= len(self.grow):
                now = self.grow[place - 1](F.interpolate(now, scale_factor=2.0, mode="nearest"))
        return F.pixel_shuffle(self.out(F.silu(self.norm(now))), self.config.patch)

    def _run(
        self,
        level: Any,  # a Level; a list of modules does not say of which kind they are
        now: Tensor,
        time_BC: Tensor,
        told: Iterator[tuple[Tensor, Tensor]],
        memory: Memory,
        maps: list[Tensor] | None,
    ) -> Tensor:
        now = level.block(now, time_BC)
        if level.attention is not None:
            now, weights = level.attention(now, *next(told), memory.hidden_B11L, maps is not None)
            if maps is not None:
                maps.append(weights)
        return now


def sinusoids(times_B: Tensor, width: int) -> Tensor:
    """Cosines and sines of the times (B, width), with wavelengths up to 10,000 (Vaswani et al. 2017)."""
    half = width // 2
    rates = torch.exp(-math.log(10_000) / half * torch.arange(half, device=times_B.device))
    angles = times_B[:, None].float() * rates
    return F.pad(torch.cat([angles.cos(), angles.sin()], 1), (0, width % 2))


def _norm(width: int) -> nn.GroupNorm:
    groups = next(groups for groups in (32, 16, 8, 4, 2, 1) if width % groups == 0 and width // groups >= 4)
    return nn.GroupNorm(groups, width)


def _zeroed(layer: nn.Module) -> nn.Module:
    """The layer with weights of zero: the block around it begins as nothing."""
    for parameter in layer.parameters():
        nn.init.zeros_(parameter)
    return layer
