"""Deep fusion of text and picture in one generator, judged by one output: DF-GAN.

Tao et al. 2022, "DF-GAN: A Simple and Effective Baseline for Text-to-Image Synthesis" (arXiv 2008.05865):

    h_0 = W z,  h_i = shortcut(up(h_{i-1})) + residual(up(h_{i-1}), [z; s])                      (section 3.2)
    affine(h) = gamma([z; s]) h + beta([z; s]),  fusion = affine, leaky, affine, leaky            (eq. 3 to 5)
    score = C(D(x), s), one number for real, matching or not                            (section 3.3, one way)
    L_D = E max(0, 1 - C(x, s)) + (E max(0, 1 + C(G(z, s), s)) + E max(0, 1 + C(x, s'))) / 2       (eq. 2)
          + k E ( |grad_x C(x, s)|^2 + |grad_s C(x, s)|^2 )^(p/2)          at real matching pairs (MA-GP)
    L_G = - E C(G(z, s), s)

The paper writes the penalty as the sum of two norms to the power p; the authors' code takes the norm of both
gradients together, and so do we. gamma begins at 1 and beta at 0, so a fresh generator ignores the text.

Shape legend: B pictures, C channels of a map, E width of the sentence, Z width of the noise.
"""

from __future__ import annotations

import math
from typing import Literal

import torch
import torch.nn.functional as F
from pydantic import BaseModel, Field, field_validator
from torch import Tensor, nn

SLOPE = 0.2
"""Negative slope of every leaky rectifier here."""


class DfGanConfig(BaseModel, extra="forbid", frozen=True):
    """Settings of generator, discriminator and penalty."""

    kind: Literal["df_gan"] = "df_gan"
    size: int = Field(32, ge=16, le=256, description="side of the square pictures, in pixels: a power of two")
    noise: int = Field(100, gt=0, le=4096, description="width of the noise")
    width: int = Field(32, ge=1, le=1024, description="channels of the generator's largest map")
    judge_width: int = Field(32, ge=1, le=1024, description="the same of the discriminator")
    penalty: float = Field(2.0, ge=0, description="weight k of the gradient penalty; 0: none")
    penalty_power: float = Field(6.0, gt=0, description="power p of the gradient's norm")
    truncation: float = Field(
        2.0, gt=0, description="noise beyond this many deviations is drawn again when painting"
    )

    @field_validator("size")
    @classmethod
    def _power_of_two(cls, size: int) -> int:
        if size & (size - 1):
            raise ValueError(f"size is {size}: expected a power of two, such as 16, 32 or 64")
        return size


class Affine(nn.Module):
    """Scale and shift of every channel, told by noise and sentence; the identity at first."""

    def __init__(self, told: int, width: int) -> None:
        super().__init__()
        self.scale = nn.Sequential(nn.Linear(told, width), nn.ReLU(), nn.Linear(width, width))
        self.shift = nn.Sequential(nn.Linear(told, width), nn.ReLU(), nn.Linear(width, width))
        for branch, value in ((self.scale, 1.0), (self.shift, 0.0)):
            nn.init.zeros_(branch[2].weight)
            nn.init.constant_(branch[2].bias, value)

    def forward(self, map_BCHW: Tensor, told_BE: Tensor) -> Tensor:
        """The map, of the same shape."""
        return self.scale(told_BE)[:, :, None, None] * map_BCHW + self.shift(told_BE)[:, :, None, None]


class Fusion(nn.Module):
    """Two affine layers, each followed by a leaky rectifier."""

    def __init__(self, told: int, width: int) -> None:
        super().__init__()
        self.first, self.second = Affine(told, width), Affine(told, width)

    def forward(self, map_BCHW: Tensor, told_BE: Tensor) -> Tensor:
        """The map, of the same shape."""
        first_BCHW = F.leaky_relu(self.first(map_BCHW, told_BE), SLOPE)
        return F.leaky_relu(self.second(first_BCHW, told_BE), SLOPE)


class FusionBlock(nn.Module):
    """Doubles the map's side and fuses the text into it, beside a shortcut."""

    def __init__(self, told: int, width_in: int, width_out: int) -> None:
        super().__init__()
        self.fuse_in, self.fuse_out = Fusion(told, width_in), Fusion(told, width_out)
        self.conv_in = nn.Conv2d(width_in, width_out, 3, padding=1)
        self.conv_out = nn.Conv2d(width_out, width_out, 3, padding=1)
        self.shortcut = nn.Identity() if width_in == width_out else nn.Conv2d(width_in, width_out, 1)

    def forward(self, map_BCHW: Tensor, told_BE: Tensor) -> Tensor:
        """The map with twice the side."""
        up_BCHW = F.interpolate(map_BCHW, scale_factor=2.0)
        inner_BCHW = self.conv_in(self.fuse_in(up_BCHW, told_BE))
        return self.shortcut(up_BCHW) + self.conv_out(self.fuse_out(inner_BCHW, told_BE))


class Generator(nn.Module):
    """Noise to 4 x 4 cells, then blocks that are told noise and sentence."""

    def __init__(self, config: DfGanConfig, sentence_width: int) -> None:
        super().__init__()
        widths = map_widths(config.width, config.size)[::-1]
        told = config.noise + sentence_width
        self.start = nn.Linear(config.noise, 8 * config.width * 16)
        self.start_width = 8 * config.width
        widths[0] = self.start_width
        self.blocks = nn.ModuleList(
            FusionBlock(told, width_in, width_out)
            for width_in, width_out in zip(widths, widths[1:], strict=False)
        )
        self.to_pixels = nn.Conv2d(widths[-1], 3, 3, padding=1)

    def forward(self, noise_BZ: Tensor, sentence_BE: Tensor) -> Tensor:
        """Pictures (B, 3, H, W) in [-1, 1]."""
        map_BCHW = self.start(noise_BZ).view(-1, self.start_width, 4, 4)
        told_BE = torch.cat([noise_BZ, sentence_BE], 1)
        for block in self.blocks:
            map_BCHW = block(map_BCHW, told_BE)
        return torch.tanh(self.to_pixels(F.leaky_relu(map_BCHW, SLOPE)))


class DownBlock(nn.Module):
    """Halves the map's side; what the convolutions find is weighted by a number that begins at zero."""

    def __init__(self, width_in: int, width_out: int) -> None:
        super().__init__()
        self.conv_in = nn.Conv2d(width_in, width_out, 4, 2, 1, bias=False)
        self.conv_out = nn.Conv2d(width_out, width_out, 3, padding=1, bias=False)
        self.shortcut = nn.Identity() if width_in == width_out else nn.Conv2d(width_in, width_out, 1)
        self.weight = nn.Parameter(torch.zeros(1))

    def forward(self, map_BCHW: Tensor) -> Tensor:
        """The map with half the side."""
        inner_BCHW = F.leaky_relu(self.conv_in(map_BCHW), SLOPE)
        found_BCHW = F.leaky_relu(self.conv_out(inner_BCHW), SLOPE)
        return F.avg_pool2d(self.shortcut(map_BCHW), 2) + self.weight * found_BCHW


class Discriminator(nn.Module):
    """One score for "real, and of this sentence". There are no batch norms: a penalty on its gradient needs
    pictures that are judged each by itself.
    """

    def __init__(self, config: DfGanConfig, sentence_width: int) -> None:
        super().__init__()
        widths = map_widths(config.judge_width, config.size)
        self.from_pixels = nn.Conv2d(3, widths[0], 3, padding=1)
        self.blocks = nn.ModuleList(
            DownBlock(width_in, width_out) for width_in, width_out in zip(widths, widths[1:], strict=False)
        )
        self.joint_in = nn.Conv2d(
            widths[-1] + sentence_width, 2 * config.judge_width, 3, padding=1, bias=False
        )
        self.joint_out = nn.Conv2d(2 * config.judge_width, 1, 4, bias=False)

    def look(self, pictures_B3HW: Tensor) -> Tensor:
        """What is seen in a picture, (B, C, 4, 4), before any sentence."""
        map_BCHW = self.from_pixels(pictures_B3HW)
        for block in self.blocks:
            map_BCHW = block(map_BCHW)
        return map_BCHW

    def judge(self, map_BC44: Tensor, sentence_BE: Tensor) -> Tensor:
        """Scores (B) of what was seen, for sentences."""
        told_BE44 = sentence_BE[:, :, None, None].expand(-1, -1, *map_BC44.shape[2:])
        joint_BC44 = self.joint_in(torch.cat([map_BC44, told_BE44], 1))
        return self.joint_out(F.leaky_relu(joint_BC44, SLOPE)).flatten()

    def forward(self, pictures_B3HW: Tensor, sentence_BE: Tensor) -> Tensor:
        """Scores (B): 1 and above for surely real and matching, -1 and below for surely not."""
        return self.judge(self.look(pictures_B3HW), sentence_BE)


class DfGan(nn.Module):
    """Generator and discriminator; only the generator paints.

    Attributes:
        config: its settings.
    """

    def __init__(self, config: DfGanConfig, text_width: int) -> None:
        """`text_width` is E, the width of a sentence."""
        super().__init__()
        self.config = config
        self.generator = Generator(config, text_width)
        self.discriminator = Discriminator(config, text_width)

    def paint(self, noise_BZ: Tensor, sentence_BE: Tensor) -> Tensor:
        """Pictures (B, 3, H, W) in [-1, 1]."""
        return self.generator(noise_BZ, sentence_BE)


def gradient_penalty(
    discriminator: Discriminator, pictures_B3HW: Tensor, sentence_BE: Tensor, power: float
) -> Tensor:
    """The norm of a score's gradient by picture and sentence together, to a power, in float32; (B).

    For real pictures with their own sentences (matching-aware gradient penalty, MA-GP).
    """
    pictures_B3HW = pictures_B3HW.detach().float().requires_grad_(True)
    sentence_BE = sentence_BE.detach().float().requires_grad_(True)
    score_B = discriminator(pictures_B3HW, sentence_BE)
    by_picture, by_sentence = torch.autograd.grad(
        score_B.sum(), (pictures_B3HW, sentence_BE), create_graph=True
    )
    squared_B = by_picture.flatten(1).square().sum(1) + by_sentence.square().sum(1)
    return squared_B.pow(power / 2)


def map_widths(width: int, size: int) -> list[int]:
    """Channels of the maps from the picture's side down to 4 x 4: doubled each time, eightfold at most."""
    return [width * min(2**level, 8) for level in range(int(math.log2(size)) - 1)]
