"""Consensus: which of a search's captions says what people say of pictures like this one.

    a caption         v_n = tf-idf of its n-grams, over its length |v_n|; n = 1 to 4   (CIDEr; Vedantam 2015)
    what people say   p_n(x) = b_n + W_n (x - m) / s        x: mean patch; ridge regression of the mean v_n
                      of a training picture's captions
    agreement         a(c, x) = 1/4 sum_n v_n(c) . p_n(x)
    chosen            argmax over the search's captions of log p(c | picture) + weight a(c, x)

Consensus among the captions of the nearest training pictures (Devlin 2015, arXiv 1505.04467) ranks the
candidates of a search better than their probability does. Here a linear map takes the place of the
neighbours: it needs neither the training pictures nor their captions.

Shape legend: B images, C width of the tower, G n-grams.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence

import torch
from torch import Tensor, nn

LONGEST = 4
NGram = tuple[int, ...]


class Consensus(nn.Module):
    """Predicts the n-grams of a picture's captions from its mean patch.

    Its tensors are buffers, saved with the model: `fit` finds them, no gradient does.
    """

    def __init__(self, width: int, ngrams: int) -> None:
        super().__init__()
        self.register_buffer("ngrams_G4", torch.full((ngrams, LONGEST), -1, dtype=torch.int32))
        self.register_buffer("rarity_G", torch.zeros(ngrams))
        self.register_buffer("rarest", torch.tensor(0.0))
        self.register_buffer("mean_C", torch.zeros(width))
        self.register_buffer("deviation_C", torch.ones(width))
        self.register_buffer("weights_CG", torch.zeros(width, ngrams))
        self.register_buffer("unit_G", torch.ones(ngrams))
        self.register_buffer("base_G", torch.zeros(ngrams))
        self._known: dict[NGram, tuple[int, float]] = {}

    @classmethod
    @torch.no_grad()
    def fit(
        cls, means_BC: Tensor, captions: Sequence[Sequence[Sequence[int]]], least: int, ridge: float
    ) -> Consensus:
        """Fits the map to training pictures.

        Args:
            means_BC: `layers.familiarity.mean_patch` of each training picture.
            captions: token ids of each picture's captions, without start and end; a negative id is a word
                that is not in the vocabulary, and nothing with it is predicted.
            least: pictures whose captions must have an n-gram for it to be predicted.
            ridge: weight of the squared weights, in pictures, for features of unit variance.
        """
        pictures = len(captions)
        frequency: Counter[NGram] = Counter()
        for said in captions:
            frequency.update({ngram for one in said for ngram in _ngrams(one)})
        kept = sorted(ngram for ngram, count in frequency.items() if count >= least and min(ngram) >= 0)
        found = cls(means_BC.shape[1], len(kept))
        rows = [[*ngram, *[-1] * (LONGEST - len(ngram))] for ngram in kept]
        found.ngrams_G4.copy_(torch.tensor(rows, dtype=torch.int32).view(-1, LONGEST))
        rarity = [math.log(pictures / frequency[ngram]) for ngram in kept]
        found.rarity_G.copy_(torch.tensor(rarity))
        # What is not kept occurs in 1 to `least` pictures; in their geometric middle, as far as is known.
        found.rarest.fill_(math.log(pictures / math.sqrt(least)))
        targets_BG = torch.zeros(pictures, len(kept))
        for row_G, said in zip(targets_BG, captions, strict=True):
            for one in said:
                for place, value in found.weighed(one).items():
                    row_G[place] += value / len(said)
        x_BC = means_BC.float()
        found.mean_C.copy_(x_BC.mean(0))
        found.deviation_C.copy_(x_BC.std(0).clamp(min=1e-6))
        found.base_G.copy_(targets_BG.mean(0))
        x_BC = (x_BC - found.mean_C) / found.deviation_C
        gram_CC = x_BC.T @ x_BC + ridge * torch.eye(x_BC.shape[1])
        weights_CG = torch.linalg.solve(gram_CC, x_BC.T @ (targets_BG - found.base_G))
        # Columns of like size lose nothing in half precision.
        found.unit_G.copy_(weights_CG.abs().amax(0).clamp(min=1e-12))
        found.weights_CG.copy_(weights_CG / found.unit_G)
        return found

    def weighed(self, tokens: Sequence[int]) -> Mapping[int, float]:
        """The tf-idf weight of each predicted n-gram of a caption, by its place; those of one n have length
        one together with the n-grams that are not predicted."""
        known, rarest = self._table(), float(self.rarest)
        weights: dict[int, float] = {}
        for length in range(1, LONGEST + 1):
            counts = Counter(ngram for ngram in _ngrams(tokens) if len(ngram) == length)
            values = {
                ngram: count * (known[ngram][1] if ngram in known else rarest)
                for ngram, count in counts.items()
            }
            norm = math.sqrt(sum(value * value for value in values.values()))
            if norm > 0:
                weights |= {
                    known[ngram][0]: value / norm for ngram, value in values.items() if ngram in known
                }
        return weights

    @torch.no_grad()
    def agreement(self, means_BC: Tensor, captions: Sequence[Sequence[Sequence[int]]]) -> list[list[float]]:
        """How far each of a picture's candidate captions says what people would say of it.

        Args:
            means_BC: mean patch of each picture.
            captions: token ids of the candidates of each picture, without special tokens.
        """
        x_BC = (means_BC.float() - self.mean_C) / self.deviation_C
        predicted_BG = (self.base_G + (x_BC @ self.weights_CG.float()) * self.unit_G).tolist()
        return [
            [
                sum(value * row_G[place] for place, value in self.weighed(one).items()) / LONGEST
                for one in candidates
            ]
            for row_G, candidates in zip(predicted_BG, captions, strict=True)
        ]

    def _table(self) -> dict[NGram, tuple[int, float]]:
        """Place and rarity of each n-gram; read from the tensors once, when they hold what was fitted."""
        if len(self._known) != len(self.ngrams_G4):
            rows = zip(self.ngrams_G4.tolist(), self.rarity_G.tolist(), strict=True)
            self._known = {
                tuple(token for token in row if token >= 0): (place, rarity)
                for place, (row, rarity) in enumerate(rows)
            }
        return self._known


def _ngrams(tokens: Sequence[int]) -> Iterator[NGram]:
    """The n-grams of 1 to 4 tokens."""
    for length in range(1, LONGEST + 1):
        for first in range(len(tokens) - length + 1):
            yield tuple(tokens[first : first + length])
