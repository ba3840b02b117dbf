"""A generator and a discriminator that both read the text: the first painter, GAN-INT-CLS.

Reed et al. 2016, "Generative Adversarial Text to Image Synthesis" (arXiv 1605.05396), sections 4.1 to 4.3:

    picture = G(z, W s)                    z ~ N(0, I), s the sentence; strided transposed convolutions
    score = D(f(picture), W' s)            f down to 4 x 4 cells, the sentence beside every cell
    L_D = CE(D(x, s), 1) + (CE(D(x', s), 0) + CE(D(G(z, s), s), 0)) / 2      x' a real picture of another text
    L_G = CE(D(G(z, s), s), 1), and the same with s halfway between two texts (interpolation, eq. 5)

The middle term of L_D is what makes the discriminator look at the text at all from the first step (CLS).

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


class ConditionalGanConfig(BaseModel, extra="forbid", frozen=True):
    """Settings of generator and discriminator."""

    kind: Literal["conditional_gan"] = "conditional_gan"
    size: int = Field(32, ge=8, le=256, description="side of the square pictures, in pixels: a power of two")
    noise: int = Field(100, gt=0, le=4096, description="width of the noise")
    sentence: int = Field(128, gt=0, le=4096, description="width that the sentence is projected to")
    width: int = Field(32, ge=1, le=1024, description="channels of the generator's largest map (paper: 128)")
    judge_width: int = Field(32, ge=1, le=1024, description="the same of the discriminator (paper: 64)")
    matching_aware: bool = Field(True, description="teach the discriminator with wrong pairs (CLS)")
    interpolated: bool = Field(True, description="teach the generator with sentences between two texts (INT)")

    @field_validator("size")
    @classmethod
    def _power_of_two(cls, size: int) -> int:
        if size & (size - 1):
            raise ValueError(f"size is {size}: expected a power of two, such as 16, 32 or 64")
        return size


class Generator(nn.Module):
    """Noise and sentence to a picture: 4 x 4 cells, doubled until they are the pixels."""

    def __init__(self, config: ConditionalGanConfig, sentence_width: int) -> None:
        super().__init__()
        self.sentence = nn.Linear(sentence_width, config.sentence)
        widths = map_widths(config.width, config.size)[::-1]
        layers: list[nn.Module] = [
            nn.ConvTranspose2d(config.noise + config.sentence, widths[0], 4, bias=False),
            nn.BatchNorm2d(widths[0]),
            nn.ReLU(),
        ]
        for width_in, width_out in zip(widths, widths[1:], strict=False):
            layers += [
                nn.ConvTranspose2d(width_in, width_out, 4, 2, 1, bias=False),
                nn.BatchNorm2d(width_out),
                nn.ReLU(),
            ]
        layers += [nn.ConvTranspose2d(widths[-1], 3, 4, 2, 1), nn.Tanh()]
        self.layers = nn.Sequential(*layers)

    def forward(self, noise_BZ: Tensor, sentence_BE: Tensor) -> Tensor:
        """Pictures (B, 3, H, W) in [-1, 1]."""
        told_BC = F.leaky_relu(self.sentence(sentence_BE), SLOPE)
        return self.layers(torch.cat([noise_BZ, told_BC], 1)[:, :, None, None])


class Discriminator(nn.Module):
    """Says whether a picture is real and shows what the sentence says."""

    def __init__(self, config: ConditionalGanConfig, sentence_width: int) -> None:
        super().__init__()
        self.sentence = nn.Linear(sentence_width, config.sentence)
        widths = map_widths(config.judge_width, config.size)
        layers: list[nn.Module] = [nn.Conv2d(3, widths[0], 4, 2, 1), nn.LeakyReLU(SLOPE)]
        for width_in, width_out in zip(widths, widths[1:], strict=False):
            layers += [
                nn.Conv2d(width_in, width_out, 4, 2, 1, bias=False),
                nn.BatchNorm2d(width_out),
                nn.LeakyReLU(SLOPE),
            ]
        self.layers = nn.Sequential(*layers)
        self.joint = nn.Sequential(
            nn.Conv2d(widths[-1] + config.sentence, widths[-1], 1, bias=False),
            nn.BatchNorm2d(widths[-1]),
            nn.LeakyReLU(SLOPE),
            nn.Conv2d(widths[-1], 1, 4),
        )

    def forward(self, pictures_B3HW: Tensor, sentence_BE: Tensor) -> Tensor:
        """Logits (B) of being a real picture of this sentence."""
        map_BC44 = self.layers(pictures_B3HW)
        told_BC = F.leaky_relu(self.sentence(sentence_BE), SLOPE)
        return self.joint(torch.cat([map_BC44, beside_cells(told_BC, map_BC44)], 1)).flatten()


class ConditionalGan(nn.Module):
    """Generator and discriminator; only the generator paints.

    Attributes:
        config: its settings.
    """

    def __init__(self, config: ConditionalGanConfig, text_width: int) -> None:
        """`text_width` is E, the width of a sentence."""
        super().__init__()
        self.config = config
        self.generator = Generator(config, text_width)
        self.discriminator = Discriminator(config, text_width)
        self.apply(_begin)

    def paint(self, noise_BZ: Tensor, sentence_BE: Tensor) -> Tensor:
        """Pictures (B, 3, H, W) in [-1, 1]."""
        return self.generator(noise_BZ, sentence_BE)


def map_widths(width: int, size: int) -> list[int]:
    """Channels of the maps from half the picture's side down to 4 x 4: doubled each time."""
    return [width * 2**level for level in range(int(math.log2(size)) - 2)]


def beside_cells(vector_BC: Tensor, map_BCHW: Tensor) -> Tensor:
    """A vector repeated for every cell of a map, (B, C, H, W)."""
    return vector_BC[:, :, None, None].expand(-1, -1, *map_BCHW.shape[2:])


def _begin(module: nn.Module) -> None:
    """Weights of DCGAN (Radford et al. 2016, section 3): small normal ones, norms around one."""
    if isinstance(module, (nn.Conv2d, nn.ConvTranspose2d)):
        nn.init.normal_(module.weight, 0.0, 0.02)
    elif isinstance(module, nn.BatchNorm2d):
        nn.init.normal_(module.weight, 1.0, 0.02)
