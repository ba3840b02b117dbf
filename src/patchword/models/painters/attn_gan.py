"""A generator whose cells attend to words, and the model of matching words and regions that teaches it:
AttnGAN.

Xu et al. 2018, "AttnGAN: Fine-Grained Text to Image Generation with Attentional Generative Adversarial
Networks" (arXiv 1711.10485):

    h_0 = F_0(z, c(s)),  h_i = F_i(h_{i-1}, A(e, h_{i-1})),  picture_i = G_i(h_i)                  (eq. 1)
    A: e' = U e,  w_ji = softmax over words i of h_j . e'_i,  A_j = sum_i w_ji e'_i                (eq. 2)
    L_D_i = (real + real with s) / 2 + (fake + fake with s + wrong with s) / 3                   (eq. 5, code)
    L_G = sum_i (CE of D_i's two scores) + l L_DAMSM(last picture) + KL                          (eq. 3, code)

DAMSM, for words e_i of a text and regions v_j of a picture (both of width D):

    a_ij = softmax over words i of e_i . v_j                                                       (eq. 7, 8)
    alpha_ij = softmax over regions j of g1 a_ij,  c_i = sum_j alpha_ij v_j                        (eq. 9)
    R(picture, text) = log sum_i exp(g2 cos(c_i, e_i))                                             (eq. 10)
    four cross-entropies of g3 R over the batch: pictures and texts, words and sentences           (eq. 11 to
    13)

The paper takes the g2-th root in eq. 10, the authors' code does not; we follow the code. Texts that say the
same are no negatives of one another. Padding has weight 0.

Shape legend: B pictures, Q texts (both index a batch), T words, R regions, D width of words and regions, C
channels of a map, E width of the text tower, Z width of the noise, N cells of a map.
"""

from __future__ import annotations

import math
from typing import Literal, NamedTuple

import torch
import torch.nn.functional as F
from pydantic import BaseModel, Field, model_validator
from torch import Tensor, nn

from patchword.layers.gaussian import Condition, drawn

SLOPE = 0.2
"""Negative slope of every leaky rectifier here."""


class AttnGanConfig(BaseModel, extra="forbid", frozen=True):
    """Settings of generators, discriminators and the matching model."""

    kind: Literal["attn_gan"] = "attn_gan"
    size: int = Field(32, ge=16, le=256, description="side of the last stage's pictures (paper: 256)")
    stages: int = Field(2, ge=1, le=4, description="pictures of growing size, each twice the last (paper: 3)")
    noise: int = Field(100, gt=0, le=4096, description="width of the noise")
    condition: int = Field(100, gt=0, le=4096, description="width of the augmented sentence")
    words: int = Field(64, gt=0, le=4096, description="width D of words and regions (paper: 256)")
    width: int = Field(32, ge=1, le=1024, description="channels of a generator's maps")
    judge_width: int = Field(32, ge=1, le=1024, description="channels of a discriminator's largest map")
    region_width: int = Field(32, ge=1, le=1024, description="channels of the network that finds regions")
    blocks: int = Field(2, ge=1, le=16, description="residual blocks of each further stage")
    matching: float = Field(5.0, ge=0, description="weight of the matching loss of the last picture")
    divergence: float = Field(1.0, ge=0, description="weight of the KL term, a mean over the channels")
    sharpness: tuple[float, float, float] = Field(
        (4.0, 5.0, 10.0), description="g1 (regions of a word), g2 (words of a text), g3 (texts of a batch)"
    )

    @model_validator(mode="after")
    def _sizes_double(self) -> AttnGanConfig:
        if self.size & (self.size - 1):
            raise ValueError(f"size is {self.size}: expected a power of two, such as 16, 32 or 64")
        if self.first_size < 8:
            raise ValueError(
                f"size is {self.size} and stages is {self.stages}, so the first pictures would have "
                f"{self.first_size} pixels: 8 are needed at least"
            )
        return self

    @property
    def first_size(self) -> int:
        """Side of the first stage's pictures."""
        return self.size >> (self.stages - 1)


class Augmentation(nn.Module):
    """Conditioning augmentation; mean and log variance pass through a gate."""

    def __init__(self, sentence_width: int, width: int) -> None:
        super().__init__()
        self.project = nn.Linear(sentence_width, 4 * width)

    def forward(self, sentence_BD: Tensor) -> Condition:
        """Sample, mean and log variance; outside training the sample is the mean."""
        mean_BC, log_variance_BC = F.glu(self.project(sentence_BD), 1).chunk(2, 1)
        sample_BC = drawn(mean_BC, log_variance_BC) if self.training else mean_BC
        return Condition(sample_BC, mean_BC, log_variance_BC)


class WordAttention(nn.Module):
    """Cells attend to words."""

    def __init__(self, width: int, words: int) -> None:
        super().__init__()
        self.project = nn.Linear(words, width, bias=False)

    def forward(self, map_BCHW: Tensor, words_BTD: Tensor, mask_BT: Tensor) -> tuple[Tensor, Tensor]:
        """What each cell reads (B, C, H, W), and its weights on the words (B, N, T)."""
        words_BTC = self.project(words_BTD)
        scores_BNT = map_BCHW.flatten(2).transpose(1, 2) @ words_BTC.transpose(1, 2)
        weights_BNT = scores_BNT.masked_fill(~mask_BT[:, None], float("-inf")).softmax(-1)
        read_BNC = weights_BNT @ words_BTC
        return read_BNC.transpose(1, 2).unflatten(2, map_BCHW.shape[2:]), weights_BNT


class ResidualBlock(nn.Module):
    """A gated convolution and a plain one beside a shortcut."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.gated = _gated(width, width)
        self.conv = nn.Conv2d(width, width, 3, padding=1, bias=False)
        self.norm = nn.BatchNorm2d(width)

    def forward(self, map_BCHW: Tensor) -> Tensor:
        """The map, of the same shape."""
        return map_BCHW + self.norm(self.conv(self.gated(map_BCHW)))


class FirstStage(nn.Module):
    """F_0: noise and augmented sentence to the first map."""

    def __init__(self, config: AttnGanConfig) -> None:
        super().__init__()
        doublings = int(math.log2(config.first_size)) - 2
        self.start_width = config.width * 2**doublings
        self.start = nn.Linear(config.noise + config.condition, self.start_width * 32, bias=False)
        self.start_norm = nn.BatchNorm1d(self.start_width * 32)
        self.up = nn.Sequential(
            *(
                _doubled(self.start_width >> level, self.start_width >> (level + 1))
                for level in range(doublings)
            )
        )

    def forward(self, noise_BZ: Tensor, condition_BC: Tensor) -> Tensor:
        """A map (B, C, h, w)."""
        start = F.glu(self.start_norm(self.start(torch.cat([condition_BC, noise_BZ], 1))), 1)
        return self.up(start.view(-1, self.start_width, 4, 4))


class NextStage(nn.Module):
    """F_i: a map and the words that its cells read to a map of twice the side."""

    def __init__(self, config: AttnGanConfig) -> None:
        super().__init__()
        self.attention = WordAttention(config.width, config.words)
        self.residual = nn.Sequential(*(ResidualBlock(2 * config.width) for _ in range(config.blocks)))
        self.up = _doubled(2 * config.width, config.width)

    def forward(self, map_BCHW: Tensor, words_BTD: Tensor, mask_BT: Tensor) -> tuple[Tensor, Tensor]:
        """A map, and its cells' weights on the words."""
        read_BCHW, weights_BNT = self.attention(map_BCHW, words_BTD, mask_BT)
        return self.up(self.residual(torch.cat([map_BCHW, read_BCHW], 1))), weights_BNT


class StageOutputs(NamedTuple):
    """Pictures of every stage, what they were told, and where cells attended to words."""

    pictures: tuple[Tensor, ...]
    condition: Condition
    weights: tuple[Tensor, ...]


class Generator(nn.Module):
    """All stages."""

    def __init__(self, config: AttnGanConfig) -> None:
        super().__init__()
        self.augment = Augmentation(config.words, config.condition)
        self.first = FirstStage(config)
        self.later = nn.ModuleList(NextStage(config) for _ in range(config.stages - 1))
        self.to_pixels = nn.ModuleList(
            nn.Conv2d(config.width, 3, 3, padding=1, bias=False) for _ in range(config.stages)
        )

    def forward(
        self, noise_BZ: Tensor, sentence_BD: Tensor, words_BTD: Tensor, mask_BT: Tensor
    ) -> StageOutputs:
        """Pictures in [-1, 1], the smallest first."""
        condition = self.augment(sentence_BD)
        map_BCHW = self.first(noise_BZ, condition.sample_BC)
        pictures, found = [torch.tanh(self.to_pixels[0](map_BCHW))], []
        for stage, to_pixels in zip(self.later, list(self.to_pixels)[1:], strict=True):
            map_BCHW, weights_BNT = stage(map_BCHW, words_BTD, mask_BT)
            pictures.append(torch.tanh(to_pixels(map_BCHW)))
            found.append(weights_BNT)
        return StageOutputs(tuple(pictures), condition, tuple(found))


class Discriminator(nn.Module):
    """D_i: one score for "real" and one for "real, and of this sentence"."""

    def __init__(self, size: int, width: int, sentence_width: int) -> None:
        super().__init__()
        widths = [width * min(2**level, 8) for level in range(int(math.log2(size)) - 2)]
        layers: list[nn.Module] = [nn.Conv2d(3, widths[0], 4, 2, 1, bias=False), nn.LeakyReLU(SLOPE)]
        for width_in, width_out in zip(widths, widths[1:], strict=False):
            layers += [
                nn.Conv2d(width_in, width_out, 4, 2, 1, bias=False),
                nn.BatchNorm2d(width_out),
                nn.LeakyReLU(SLOPE),
            ]
        self.layers = nn.Sequential(*layers)
        self.joint = nn.Sequential(
            nn.Conv2d(widths[-1] + sentence_width, widths[-1], 3, padding=1, bias=False),
            nn.BatchNorm2d(widths[-1]),
            nn.LeakyReLU(SLOPE),
        )
        self.with_sentence, self.alone = nn.Conv2d(widths[-1], 1, 4), nn.Conv2d(widths[-1], 1, 4)

    def forward(self, pictures_B3HW: Tensor, sentence_BD: Tensor) -> tuple[Tensor, Tensor]:
        """Two logits (B): of being real, and of being a real picture of this sentence."""
        map_BC44 = self.layers(pictures_B3HW)
        told_BD44 = sentence_BD[:, :, None, None].expand(-1, -1, *map_BC44.shape[2:])
        joint_BC44 = self.joint(torch.cat([map_BC44, told_BD44], 1))
        return self.alone(map_BC44).flatten(), self.with_sentence(joint_BC44).flatten()


class Matching(nn.Module):
    """DAMSM: regions of pictures and words of texts in one space.

    A small network stands for the Inception of the paper. Its maps of a quarter of the picture's side are the
    regions, its mean cell the picture.
    """

    def __init__(self, config: AttnGanConfig, text_width: int) -> None:
        super().__init__()
        width = config.region_width
        self.sharpness = config.sharpness
        self.regions = nn.Sequential(
            nn.Conv2d(3, width, 3, padding=1),
            nn.LeakyReLU(SLOPE),
            nn.Conv2d(width, 2 * width, 4, 2, 1),
            nn.LeakyReLU(SLOPE),
            nn.Conv2d(2 * width, 4 * width, 4, 2, 1),
            nn.LeakyReLU(SLOPE),
            nn.Conv2d(4 * width, 4 * width, 3, padding=1),
            nn.LeakyReLU(SLOPE),
        )
        self.region = nn.Conv2d(4 * width, config.words, 1)
        self.picture = nn.Linear(4 * width, config.words)
        self.word = nn.Linear(text_width, config.words)
        self.sentence = nn.Linear(text_width, config.words)

    def see(self, pictures_B3HW: Tensor) -> tuple[Tensor, Tensor]:
        """Regions (B, R, D), and one vector (B, D) for each picture."""
        map_BCHW = self.regions(pictures_B3HW)
        return self.region(map_BCHW).flatten(2).transpose(1, 2), self.picture(map_BCHW.mean((2, 3)))

    def read(self, tokens_BTE: Tensor, sentence_BE: Tensor) -> tuple[Tensor, Tensor]:
        """Words (B, T, D) and sentences (B, D)."""
        return self.word(tokens_BTE), self.sentence(sentence_BE)

    def loss(
        self, pictures_B3HW: Tensor, words_QTD: Tensor, sentence_QD: Tensor, mask_QT: Tensor, same_BQ: Tensor
    ) -> Tensor:
        """The sum of the four cross-entropies, means over the batch; `same_BQ` marks texts of equal words."""
        regions_BRD, whole_BD = self.see(pictures_B3HW)
        by_words_BQ = word_scores(regions_BRD, words_QTD, mask_QT, *self.sharpness[:2])
        by_whole_BQ = F.normalize(whole_BD, dim=1) @ F.normalize(sentence_QD, dim=1).T
        own_B = torch.arange(len(words_QTD), device=words_QTD.device)
        others_BQ = same_BQ & ~torch.eye(len(own_B), dtype=torch.bool, device=own_B.device)
        total = pictures_B3HW.new_zeros(())
        for scores_BQ in (by_words_BQ, by_whole_BQ):
            scores_BQ = (self.sharpness[2] * scores_BQ).masked_fill(others_BQ, float("-inf"))
            total = total + F.cross_entropy(scores_BQ, own_B) + F.cross_entropy(scores_BQ.T, own_B)
        return total


class AttnGan(nn.Module):
    """Matching model, generator and discriminators.

    Attributes:
        config: its settings.
        matching: trained first, then held.
    """

    def __init__(self, config: AttnGanConfig, text_width: int) -> None:
        """`text_width` is E, the width of the text tower's tokens and sentences."""
        super().__init__()
        self.config = config
        self.matching = Matching(config, text_width)
        self.generator = Generator(config)
        self.discriminator = nn.ModuleList(
            Discriminator(config.first_size << stage, config.judge_width, config.words)
            for stage in range(config.stages)
        )

    def paint(
        self, noise_BZ: Tensor, tokens_BTE: Tensor, sentence_BE: Tensor, mask_BT: Tensor
    ) -> StageOutputs:
        """Pictures of every stage in [-1, 1], the smallest first."""
        words_BTD, sentence_BD = self.matching.read(tokens_BTE, sentence_BE)
        return self.generator(noise_BZ, sentence_BD, words_BTD, mask_BT)


def word_region_weights(
    regions_BRD: Tensor, words_QTD: Tensor, mask_QT: Tensor, sharpness: float
) -> tuple[Tensor, Tensor]:
    """Both softmaxes of DAMSM for every picture with every text, (B, Q, T, R) each: over the words of a
    region (0 at padding), and from it over the regions of a word.
    """
    scores_BQTR = torch.einsum("qtd,brd->bqtr", words_QTD, regions_BRD)
    hidden_1QT1 = ~mask_QT[None, :, :, None]
    over_words_BQTR = scores_BQTR.masked_fill(hidden_1QT1, float("-inf")).softmax(2)
    return over_words_BQTR, (sharpness * over_words_BQTR).softmax(3)


def word_scores(
    regions_BRD: Tensor, words_QTD: Tensor, mask_QT: Tensor, region_sharpness: float, word_sharpness: float
) -> Tensor:
    """R of every picture and text (B, Q): how well each word finds its regions."""
    _, over_regions_BQTR = word_region_weights(regions_BRD, words_QTD, mask_QT, region_sharpness)
    found_BQTD = torch.einsum("bqtr,brd->bqtd", over_regions_BQTR, regions_BRD)
    fit_BQT = F.cosine_similarity(found_BQTD, words_QTD[None], dim=-1)
    hidden_1QT = ~mask_QT[None]
    return (word_sharpness * fit_BQT).masked_fill(hidden_1QT, float("-inf")).logsumexp(2)


class _Gate(nn.Module):
    """Half of the channels, each weighted by the sigmoid of one of the other half."""

    def forward(self, map_BCHW: Tensor) -> Tensor:
        return F.glu(map_BCHW, 1)


def _gated(width_in: int, width_out: int) -> nn.Sequential:
    """Convolution to twice the channels, norm, gate."""
    return nn.Sequential(
        nn.Conv2d(width_in, 2 * width_out, 3, padding=1, bias=False), nn.BatchNorm2d(2 * width_out), _Gate()
    )


def _doubled(width_in: int, width_out: int) -> nn.Sequential:
    """The same after the map's side was doubled."""
    return nn.Sequential(nn.Upsample(scale_factor=2), *_gated(width_in, width_out))
