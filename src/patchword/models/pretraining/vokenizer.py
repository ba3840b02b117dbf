"""Vokenization: each token of a text gets the picture of a bank that fits it best where it stands.

Tan and Bansal 2020 (Vokenization: Improving Language Understanding with Contextualized, Visual-Grounded
Supervision, EMNLP), sections 3.1 and 3.2:

    r(w, x; s) = f(w; s)' g(x)          f = unit(MLP([h_1; ...; h_n]))  the last n layers of a text tower at w
                                        g = unit(MLP(e))                the vector of a picture
    matching:  sum over words  max(0, margin - r(w, x) + r(w, x')) + max(0, margin - r(w, x) + r(w', x))
    voken:     v(w; s) = argmax over the bank of r(w, x; s)
    language model:  masked tokens from their context, and the voken of every token by softmax over the bank

Both towers are frozen. x' and w' are those of another pair of the batch, half a batch away, as in the
authors' code: in the second term w' is the token at the same place of the other sentence. With
`hardest_negatives` they are those of the batch that violate the margin most (Faghri et al. 2018, VSE++).

Shape legend: B pairs, L tokens, C width of the joined layers, E width of picture vectors, D shared width,
F pictures of the bank, N tokens of all texts, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Literal, NamedTuple

import torch
import torch.nn.functional as F
from pydantic import BaseModel, Field
from torch import Tensor, nn


class VokenizerConfig(BaseModel, extra="forbid", frozen=True):
    """Settings of the token-to-picture matcher."""

    kind: Literal["vokenizer"] = "vokenizer"
    width: int = Field(64, gt=0, description="width of the space in which tokens and pictures meet")
    hidden: int = Field(256, gt=0, description="width of the hidden layer of both heads")
    dropout: float = Field(0.3, ge=0, lt=1, description="dropout in both heads")
    margin: float = Field(0.5, ge=0, description="margin of the hinge")
    hardest_negatives: bool = Field(
        False,
        description="compare with the picture and the word of the batch that fit best without being one's "
        "own, in place of those of the pair half a batch away",
    )
    layers: int = Field(4, gt=0, description="last layers of the text tower that are joined")


class Head(nn.Module):
    """MLP, then length one."""

    def __init__(self, inputs: int, hidden: int, width: int, dropout: float) -> None:
        super().__init__()
        self.layers = nn.Sequential(
            nn.Linear(inputs, hidden), nn.ReLU(), nn.Dropout(dropout), nn.Linear(hidden, width)
        )

    def forward(self, x: Tensor) -> Tensor:
        """Vectors of length one, along the last axis."""
        return F.normalize(self.layers(x), dim=-1)


class Vokenizer(nn.Module):
    """The two heads over frozen towers."""

    def __init__(self, config: VokenizerConfig, token_width: int, picture_width: int) -> None:
        super().__init__()
        self.config = config
        self.tokens = Head(token_width, config.hidden, config.width, config.dropout)
        self.pictures = Head(picture_width, config.hidden, config.width, config.dropout)

    def loss(self, states_BLC: Tensor, words_BL: Tensor, pictures_BE: Tensor) -> Tensor:
        """The mean hinge over words in both directions; `words_BL` is False at padding and special tokens.

        The other pair is half a batch away, or with `hardest_negatives` the worst of the batch. A word has a
        second term only where the other sentence has a word at its place. A batch of one has nothing to
        compare, and no loss.
        """
        words_BLD, pictures_BD = self.tokens(states_BLC), self.pictures(pictures_BE)
        if len(pictures_BD) == 1:
            return 0.0 * (words_BLD.sum() + pictures_BD.sum())
        own_BL = torch.einsum("bld,bd->bl", words_BLD, pictures_BD)
        hardest = self.config.hardest_negatives
        compared = _hardest_pair if hardest else _pair_half_a_batch_away
        other_picture_BL, other_word_BL = compared(words_BLD, pictures_BD, words_BL)
        first_BL = F.relu(self.config.margin - own_BL + other_picture_BL)[words_BL]
        second_BL = F.relu(self.config.margin - own_BL + other_word_BL)[words_BL]
        return (first_BL.sum() + second_BL.sum()) / words_BL.sum().clamp_min(1)


def _pair_half_a_batch_away(
    words_BLD: Tensor, pictures_BD: Tensor, words_BL: Tensor
) -> tuple[Tensor, Tensor]:
    """How well the other pair's picture fits each word, and its word at the same place the own picture, both
    (B, L); -inf where the other sentence has no word there."""
    half = len(pictures_BD) // 2
    other_picture_BL = torch.einsum("bld,bd->bl", words_BLD, pictures_BD.roll(half, 0))
    other_word_BL = torch.einsum("bld,bd->bl", words_BLD.roll(half, 0), pictures_BD)
    return other_picture_BL, other_word_BL.masked_fill(~words_BL.roll(half, 0), -torch.inf)


def _hardest_pair(words_BLD: Tensor, pictures_BD: Tensor, words_BL: Tensor) -> tuple[Tensor, Tensor]:
    """The same of the other picture of the batch that fits a word best, and of the other word at its place
    that fits the own picture best."""
    relevance_BLB = torch.einsum("bld,cd->blc", words_BLD, pictures_BD)
    own_B1B = torch.eye(len(pictures_BD), dtype=torch.bool, device=pictures_BD.device)[:, None]
    other_picture_BL = relevance_BLB.masked_fill(own_B1B, -torch.inf).amax(2)
    words_first_BLB = relevance_BLB.masked_fill(~words_BL[..., None] | own_B1B, -torch.inf)
    return other_picture_BL, words_first_BLB.amax(0).t()


class Vokens(NamedTuple):
    """The pictures of N tokens."""

    pictures_N: Tensor
    """Place of the picture in the bank, int64."""
    relevance_N: Tensor
    """r of token and picture, from -1 to 1."""
    preference_N: Tensor
    """How much more it is than the mean over the bank, in standard deviations over the bank: small where a
    token prefers no picture."""


@torch.no_grad()
def nearest_pictures(words_ND: Tensor, bank: Iterable[Tensor]) -> Vokens:
    """The most relevant picture of each token; the bank comes in parts (F', D), and only one is held.

    Of equally relevant pictures it is the first of the bank, so that neither parts nor the order of texts
    change anything.
    """
    count, first = len(words_ND), 0
    best_N, place_N = torch.full((count,), -2.0), torch.zeros(count, dtype=torch.int64)
    sum_N, squares_N = torch.zeros(count, dtype=torch.float64), torch.zeros(count, dtype=torch.float64)
    for part_FD in bank:
        relevance_NF = words_ND @ part_FD.t()
        top = relevance_NF.max(1)
        better_N = top.values > best_N
        best_N = torch.where(better_N, top.values, best_N)
        place_N = torch.where(better_N, top.indices + first, place_N)
        sum_N += relevance_NF.sum(1, dtype=torch.float64)
        squares_N += relevance_NF.square().sum(1, dtype=torch.float64)
        first += len(part_FD)
    mean_N = sum_N / max(1, first)
    spread_N = (squares_N / max(1, first) - mean_N.square()).clamp_min(1e-12).sqrt()
    return Vokens(place_N, best_N, ((best_N - mean_N) / spread_N).float())


class VokenLanguageModelConfig(BaseModel, extra="forbid", frozen=True):
    """Settings of a language model that also names the vokens of its tokens."""

    kind: Literal["vokens"] = "vokens"
    hidden: float = Field(0.15, gt=0, lt=1, description="share of the tokens that are hidden")
    voken_weight: float = Field(
        1.0, ge=0, description="weight of naming the voken of every token; 0: masked language modelling alone"
    )


class TokenBatch(NamedTuple):
    """B texts for a language model."""

    ids_BL: Tensor
    """Token ids, with those that are hidden as they are."""
    real_BL: Tensor
    """False at padding."""
    hidden_BL: Tensor
    """True at words that are to be named from their context."""
    vokens_BL: Tensor
    """Place of each token's picture in the bank; -1 where it has none."""

    @property
    def target_count(self) -> int:
        """Hidden words."""
        return int(self.hidden_BL.sum())

    @property
    def picture_count(self) -> int:
        """Texts."""
        return len(self.ids_BL)

    def to(self, device: torch.device) -> TokenBatch:
        """The same batch on a device."""
        return TokenBatch(*(tensor.to(device) for tensor in self))


class VokenLanguageModel(nn.Module):
    """A text tower with two heads: the hidden tokens, and the vokens of all tokens."""

    def __init__(
        self, config: VokenLanguageModelConfig, text: nn.Module, vocabulary: int, bank: int, mask: int
    ) -> None:
        """`text` is a layered text tower; `mask` the id that stands where a token is hidden."""
        super().__init__()
        self.config, self.text, self.mask = config, text, mask
        self.words = nn.Sequential(
            nn.Linear(text.width, text.width),
            nn.GELU(),
            nn.LayerNorm(text.width),
            nn.Linear(text.width, vocabulary),
        )
        self.vokens = nn.Linear(text.width, bank) if config.voken_weight else None

    def forward(self, ids_BL: Tensor, real_BL: Tensor) -> Tensor:
        """The text tower's tokens (B, L, C)."""
        return self.text(ids_BL, real_BL).tokens_BLC

    def loss(self, batch: TokenBatch) -> dict[str, Tensor]:
        """Mean cross-entropies: `words` over hidden tokens, `vokens` over all that have one."""
        seen_BL = batch.ids_BL.masked_fill(batch.hidden_BL, self.mask)
        tokens_BLC = self(seen_BL, batch.real_BL)
        losses = {
            "words": F.cross_entropy(self.words(tokens_BLC[batch.hidden_BL]), batch.ids_BL[batch.hidden_BL])
        }
        if self.vokens is not None:
            having_BL = batch.vokens_BL >= 0
            logits_NF = self.vokens(tokens_BLC[having_BL])
            losses["vokens"] = self.config.voken_weight * F.cross_entropy(
                logits_NF, batch.vokens_BL[having_BL]
            )
        return losses
