"""Two generators, one after the other: a small picture from the text, then a larger one from both.

Zhang et al. 2017, "StackGAN: Text to Photo-realistic Image Synthesis with Stacked Generative Adversarial
Networks" (arXiv 1612.03242), sections 3.2 to 3.4:

    mean, log variance = W s,  c ~ N(mean, variance)            conditioning augmentation, fresh in each stage
    first stage:   picture_0 = G_0(z, c_0),  judged with its text by D_0
    second stage:  picture_1 = G_1(picture_0, c_1): down by four, c_1 beside every cell, residual blocks, up;
                   it has no noise of its own, and G_0 is held
    L_D = CE(D(x, s), 1) + (CE(D(x', s), 0) + CE(D(picture, s), 0)) / 2
    L_G = CE(D(picture, s), 1) + w KL(N(mean, variance) || N(0, I))

Discriminators are told the mean, not the sample: the sample would be noise to them. The KL is summed over the
channels as in the paper and divided by their number times a weight as in the authors' code.

Shape legend: B pictures, C channels of a map, E width of the sentence, Z width of the noise.
"""

from __future__ import annotations

import math
from typing import Literal

import torch
import torch.nn.functional as F
from pydantic import BaseModel, Field, model_validator
from torch import Tensor, nn

from patchword.layers.gaussian import Condition, drawn

SLOPE = 0.2
"""Negative slope of every leaky rectifier here."""


class StackGanConfig(BaseModel, extra="forbid", frozen=True):
    """Settings of both stages."""

    kind: Literal["stack_gan"] = "stack_gan"
    size: int = Field(32, ge=16, le=256, description="side of the second stage's pictures (paper: 256)")
    first_size: int = Field(16, ge=8, le=128, description="side of the first stage's pictures (paper: 64)")
    noise: int = Field(100, gt=0, le=4096, description="width of the noise")
    condition: int = Field(128, gt=0, le=4096, description="width of the augmented sentence")
    width: int = Field(32, ge=1, le=1024, description="channels of a generator's largest map (code: 128)")
    judge_width: int = Field(32, ge=1, le=1024, description="the same of a discriminator (code: 64)")
    blocks: int = Field(2, ge=1, le=16, description="residual blocks of the second stage")
    divergence: float = Field(2.0, ge=0, description="weight of the KL term (code: 2)")

    @model_validator(mode="after")
    def _sizes_double(self) -> StackGanConfig:
        for name, size in (("size", self.size), ("first_size", self.first_size)):
            if size & (size - 1):
                raise ValueError(f"{name} is {size}: expected a power of two, such as 16, 32 or 64")
        if self.first_size >= self.size:
            raise ValueError(
                f"first_size is {self.first_size} and size is {self.size}: the second stage must be larger"
            )
        return self


class Augmentation(nn.Module):
    """Conditioning augmentation: a sentence becomes a normal distribution, of which a sample is told."""

    def __init__(self, sentence_width: int, width: int) -> None:
        super().__init__()
        self.project = nn.Linear(sentence_width, 2 * width)

    def forward(self, sentence_BE: Tensor) -> Condition:
        """Sample, mean and log variance; outside training the sample is the mean."""
        mean_BC, log_variance_BC = self.project(sentence_BE).chunk(2, 1)
        sample_BC = drawn(mean_BC, log_variance_BC) if self.training else mean_BC
        return Condition(sample_BC, mean_BC, log_variance_BC)


class FirstStage(nn.Module):
    """Noise and sentence to a small picture."""

    def __init__(self, config: StackGanConfig, sentence_width: int) -> None:
        super().__init__()
        self.augment = Augmentation(sentence_width, config.condition)
        doublings = int(math.log2(config.first_size)) - 2
        self.start_width = config.width * 2**doublings
        self.start = nn.Linear(config.noise + config.condition, self.start_width * 16, bias=False)
        self.start_norm = nn.BatchNorm1d(self.start_width * 16)
        self.up = nn.Sequential(
            *(
                _doubled(self.start_width >> level, self.start_width >> (level + 1))
                for level in range(doublings)
            )
        )
        self.to_pixels = nn.Conv2d(config.width, 3, 3, padding=1)

    def forward(self, noise_BZ: Tensor, sentence_BE: Tensor) -> tuple[Tensor, Condition]:
        """Pictures (B, 3, h, w) in [-1, 1], and what they were told."""
        told = self.augment(sentence_BE)
        start = F.relu(self.start_norm(self.start(torch.cat([noise_BZ, told.sample_BC], 1))))
        map_BCHW = self.up(start.view(-1, self.start_width, 4, 4))
        return torch.tanh(self.to_pixels(map_BCHW)), told


class SecondStage(nn.Module):
    """A small picture and its sentence to a larger picture."""

    def __init__(self, config: StackGanConfig, sentence_width: int) -> None:
        super().__init__()
        width = config.width
        self.augment = Augmentation(sentence_width, config.condition)
        self.down = nn.Sequential(
            nn.Conv2d(3, width, 3, padding=1),
            nn.ReLU(),
            _halved(width, 2 * width),
            _halved(2 * width, 4 * width),
        )
        self.join = _same(4 * width + config.condition, 4 * width)
        self.residual = nn.ModuleList(
            nn.Sequential(
                _same(4 * width, 4 * width),
                nn.Conv2d(4 * width, 4 * width, 3, padding=1, bias=False),
                nn.BatchNorm2d(4 * width),
            )
            for _ in range(config.blocks)
        )
        doublings = int(math.log2(config.size // config.first_size)) + 2
        widths = [max(4 * width >> level, width // 2) for level in range(doublings + 1)]
        self.up = nn.Sequential(
            *(_doubled(before, after) for before, after in zip(widths, widths[1:], strict=False))
        )
        self.to_pixels = nn.Conv2d(widths[-1], 3, 3, padding=1)

    def forward(self, small_B3hw: Tensor, sentence_BE: Tensor) -> tuple[Tensor, Condition]:
        """Pictures (B, 3, H, W) in [-1, 1], and what they were told."""
        told = self.augment(sentence_BE)
        map_BCHW = self.down(small_B3hw)
        told_BCHW = told.sample_BC[:, :, None, None].expand(-1, -1, *map_BCHW.shape[2:])
        map_BCHW = self.join(torch.cat([map_BCHW, told_BCHW], 1))
        for block in self.residual:
            map_BCHW = F.relu(map_BCHW + block(map_BCHW))
        return torch.tanh(self.to_pixels(self.up(map_BCHW))), told


class Discriminator(nn.Module):
    """Says whether a picture of one stage is real and shows what the mean of its condition says."""

    def __init__(self, size: int, width: int, condition: int) -> None:
        super().__init__()
        halvings = int(math.log2(size)) - 2
        widths = [width * min(2**level, 8) for level in range(halvings)]
        layers: list[nn.Module] = [nn.Conv2d(3, widths[0], 4, 2, 1), nn.LeakyReLU(SLOPE)]
        for width_in, width_out in zip(widths, widths[1:], strict=False):
            layers += [
                nn.Conv2d(width_in, width_out, 4, 2, 1, bias=False),
                nn.BatchNorm2d(width_out),
                nn.LeakyReLU(SLOPE),
            ]
        self.layers = nn.Sequential(*layers)
        self.joint = nn.Sequential(
            nn.Conv2d(widths[-1] + condition, widths[-1], 3, padding=1, bias=False),
            nn.BatchNorm2d(widths[-1]),
            nn.LeakyReLU(SLOPE),
            nn.Conv2d(widths[-1], 1, 4),
        )

    def forward(self, pictures_B3HW: Tensor, mean_BC: Tensor) -> Tensor:
        """Logits (B) of being a real picture of this sentence."""
        map_BC44 = self.layers(pictures_B3HW)
        told_BC44 = mean_BC[:, :, None, None].expand(-1, -1, *map_BC44.shape[2:])
        return self.joint(torch.cat([map_BC44, told_BC44], 1)).flatten()


class Stage(nn.Module):
    """A generator with the discriminator that taught it."""

    def __init__(self, generator: nn.Module, discriminator: nn.Module) -> None:
        super().__init__()
        self.generator, self.discriminator = generator, discriminator


class StackGan(nn.Module):
    """Both stages.

    Attributes:
        config: its settings.
        first, second: the stages; a training teaches `first` and then, with it held, `second`.
    """

    def __init__(self, config: StackGanConfig, text_width: int) -> None:
        """`text_width` is E, the width of a sentence."""
        super().__init__()
        self.config = config
        self.first = Stage(
            FirstStage(config, text_width),
            Discriminator(config.first_size, config.judge_width, config.condition),
        )
        self.second = Stage(
            SecondStage(config, text_width),
            Discriminator(config.size, config.judge_width, config.condition),
        )

    def paint(self, noise_BZ: Tensor, sentence_BE: Tensor) -> Tensor:
        """Pictures (B, 3, H, W) in [-1, 1] of the second stage."""
        small_B3hw, _ = self.first.generator(noise_BZ, sentence_BE)
        return self.second.generator(small_B3hw, sentence_BE)[0]


def _same(width_in: int, width_out: int) -> nn.Sequential:
    """Convolution, norm, rectifier."""
    return nn.Sequential(
        nn.Conv2d(width_in, width_out, 3, padding=1, bias=False), nn.BatchNorm2d(width_out), nn.ReLU()
    )


def _halved(width_in: int, width_out: int) -> nn.Sequential:
    """The same, which halves the map's side."""
    return nn.Sequential(
        nn.Conv2d(width_in, width_out, 4, 2, 1, bias=False), nn.BatchNorm2d(width_out), nn.ReLU()
    )


def _doubled(width_in: int, width_out: int) -> nn.Sequential:
    """The same, which doubles the map's side."""
    return nn.Sequential(nn.Upsample(scale_factor=2), *_same(width_in, width_out))
