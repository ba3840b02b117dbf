"""A grounded space of sentences: pictures say which sentences lie together and how far apart, and nothing
more.

Bordes, Zablocki, Soulier, Piwowarski and Gallinari 2019 (Incorporating Visual Semantics into Sentence
Representations within a Grounded Space, EMNLP), section 3:

    s = F_t(S)  a recurrent encoder of the text          g = F_g(s)  a small network into the grounded space
    cluster:    L_C = E max(0, margin - cos(g, g+) + cos(g, g-))     g+: of the same picture; g-: of another
    perceptual: L_P = - Pearson( cos(g_k, g_l), cos(i_k, i_l) )      over pairs of different pictures
    L = L_T + a_C L_C + a_P L_P

Pictures i are fixed and used only through their similarities, so that what the text alone tells can stay in
s. The paper's L_T is SkipThought, which needs sentences that follow one another. Captions do not, so L_T here
restores the words of a sentence from s after some were dropped (a denoising autoencoder, Hill et al. 2016).

Shape legend: B sentences, one per picture; T words, V vocabulary, S width of s, G width of g, I width of
pictures.
"""

from __future__ import annotations

from typing import Literal, NamedTuple

import torch
import torch.nn.functional as F
from pydantic import BaseModel, Field
from torch import Tensor, nn


class GroundedSpaceConfig(BaseModel, extra="forbid", frozen=True):
    """Settings of the grounded space."""

    kind: Literal["grounded_space"] = "grounded_space"
    word_width: int = Field(100, gt=0, description="width of a word's embedding")
    width: int = Field(256, gt=0, description="width of the sentence vector s")
    grounded_width: int = Field(128, gt=0, description="width of the grounded vector g")
    dropped_words: float = Field(
        0.7,
        ge=0,
        lt=1,
        description="share of the words that the encoder is not shown; where most are, it also reads "
        "sentences as short as the single words whose vectors are wanted",
    )
    margin: float = Field(0.5, ge=0, description="margin of the cluster loss")
    cluster_weight: float = Field(1.0, ge=0, description="weight of the cluster loss, a_C")
    perceptual_weight: float = Field(1.0, ge=0, description="weight of the perceptual loss, a_P")


class SentencePairs(NamedTuple):
    """Two sentences of each of B different pictures."""

    sentences_BT: Tensor
    """Word ids, int64, from 0; padding is -1, and every sentence has a word."""
    others_BT: Tensor
    pictures_BI: Tensor

    @property
    def target_count(self) -> int:
        """Sentences."""
        return 2 * len(self.sentences_BT)

    @property
    def picture_count(self) -> int:
        """Pictures."""
        return len(self.sentences_BT)

    def to(self, device: torch.device) -> SentencePairs:
        """The same batch on a device."""
        return SentencePairs(*(tensor.to(device) for tensor in self))


def cosines(rows_BG: Tensor, others_BG: Tensor) -> Tensor:
    """Cosine of every row with every other one (B, B)."""
    return F.normalize(rows_BG, dim=1) @ F.normalize(others_BG, dim=1).t()


def cluster_loss(grounded_BG: Tensor, others_BG: Tensor, margin: float) -> Tensor:
    """Sentences of one picture are nearer than those of two; the mean over all pairs of pictures of a
    batch."""
    cosines_BB = cosines(grounded_BG, others_BG)
    different_BB = ~torch.eye(len(cosines_BB), dtype=torch.bool, device=cosines_BB.device)
    return F.relu(margin - cosines_BB.diagonal()[:, None] + cosines_BB)[different_BB].mean()


def perceptual_loss(grounded_BG: Tensor, pictures_BI: Tensor) -> Tensor:
    """Minus the Pearson correlation between the similarities of sentences and those of their pictures.

    Every pair of different pictures counts once. It lies between -1 and 1 and has no gradient in the
    pictures.
    """
    rows, columns = torch.triu_indices(len(grounded_BG), len(grounded_BG), offset=1)
    of_text_Q = cosines(grounded_BG, grounded_BG)[rows, columns]
    of_pictures_Q = cosines(pictures_BI, pictures_BI)[rows, columns].detach()
    of_text_Q, of_pictures_Q = of_text_Q - of_text_Q.mean(), of_pictures_Q - of_pictures_Q.mean()
    return -F.cosine_similarity(of_text_Q, of_pictures_Q, dim=0)


class GroundedSpace(nn.Module):
    """Sentence encoder, the network into the grounded space, and what restores words from s."""

    def __init__(self, config: GroundedSpaceConfig, words: int) -> None:
        super().__init__()
        self.config = config
        self.words = nn.Embedding(words, config.word_width)
        # Less than the default of 1, from which rare words do not get away in a short training.
        nn.init.normal_(self.words.weight, std=0.3)
        self.recurrent = nn.GRU(config.word_width, config.width, batch_first=True)
        self.ground = nn.Sequential(
            nn.Linear(config.width, config.width), nn.ReLU(), nn.Linear(config.width, config.grounded_width)
        )
        self.restore = nn.Linear(config.width, words)

    def encode(self, sentences_BT: Tensor) -> Tensor:
        """Sentence vectors s (B, S): the state of the encoder after the last word."""
        lengths_B = (sentences_BT >= 0).sum(1)
        states_BTS = self.recurrent(self.words(sentences_BT.clamp_min(0)))[0]
        return states_BTS[torch.arange(len(states_BTS), device=states_BTS.device), lengths_B - 1]

    def grounded(self, sentences_BT: Tensor) -> Tensor:
        """Grounded vectors g (B, G)."""
        return self.ground(self.encode(sentences_BT))

    def text_loss(self, sentences_BT: Tensor, generator: torch.Generator) -> Tensor:
        """L_T: the mean cross-entropy of the words of a sentence, given its vector after words were
        dropped."""
        vectors_BS = self.encode(self.shortened(sentences_BT, generator))
        logs_BV = self.restore(vectors_BS).log_softmax(1)
        real_BT = sentences_BT >= 0
        return -logs_BV.gather(1, sentences_BT.clamp_min(0))[real_BT].mean()

    def shortened(self, sentences_BT: Tensor, generator: torch.Generator) -> Tensor:
        """Sentences without a share of their words, closed up; one word of each stays at least, which chance
        decides."""
        real_BT = sentences_BT >= 0
        draw_BT = torch.rand(sentences_BT.shape, generator=generator).to(sentences_BT.device)
        draw_BT = draw_BT.masked_fill(~real_BT, -1.0)
        kept_BT = (draw_BT >= self.config.dropped_words) | (draw_BT == draw_BT.amax(1, keepdim=True))
        kept_BT &= real_BT
        order_BT = (~kept_BT).to(torch.uint8).argsort(dim=1, stable=True)
        closed_BT = sentences_BT.masked_fill(~kept_BT, -1).gather(1, order_BT)
        return closed_BT[:, : int(kept_BT.sum(1).max())]

    def loss(self, batch: SentencePairs, generator: torch.Generator) -> dict[str, Tensor]:
        """Named losses of a batch: `words`, and where they have a weight `cluster` and `perceptual`."""
        losses = {"words": self.text_loss(batch.sentences_BT, generator)}
        if self.config.cluster_weight or self.config.perceptual_weight:
            grounded_BG = self.grounded(batch.sentences_BT)
            others_BG = self.grounded(batch.others_BT)
            losses["cluster"] = self.config.cluster_weight * cluster_loss(
                grounded_BG, others_BG, self.config.margin
            )
            losses["perceptual"] = self.config.perceptual_weight * perceptual_loss(
                grounded_BG, batch.pictures_BI
            )
        return losses
