"""What the models of word vectors are trained on: blocks of running words, words by their two vectors, and
pairs of sentences about one picture."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from patchword.data.corpus import END, Corpus
from patchword.data.records import CaptionRecord
from patchword.errors import DataError
from patchword.models.word_vectors.autoencoder import WordBatch
from patchword.models.word_vectors.grounded_space import SentencePairs
from patchword.models.word_vectors.skip_gram import SkipGramBatch, SkipGramConfig
from patchword.text.words import split_english
from patchword.train.settings import StageSettings

_OUTSIDE = -1
"""The line of places outside the running words; no centre is in it."""


class SkipGramRows:
    """Running words of a corpus, a part of which is read from disk at each step."""

    def __init__(
        self, corpus: Corpus, config: SkipGramConfig, pictures_WP: Tensor | None, words: int, seed: int
    ) -> None:
        self.corpus, self.config, self.words, self.seed = corpus, config, words, seed
        frequency_W = torch.from_numpy(corpus.counts_W / corpus.counts_W.sum())
        ratio_W = config.subsample / frequency_W
        self.kept_W = (
            (ratio_W.sqrt() + ratio_W).clamp(max=1.0) if config.subsample else torch.ones_like(ratio_W)
        )
        noise_W = torch.from_numpy(corpus.counts_W.astype(np.float64)) ** 0.75
        self.noise_W = (noise_W / noise_W.sum()).cumsum(0).float()
        self.having = torch.empty(0, dtype=torch.int64)
        if pictures_WP is not None and config.variant != "text":
            self.having = torch.nonzero((pictures_WP != 0).any(1))[:, 0]

    def plan(self, stage: int, epoch: int) -> list[list[int]]:
        """Where each batch begins in the ids, in random order."""
        starts = np.arange(0, len(self.corpus.ids_P), self.words)
        return [
            [int(start)] for start in np.random.default_rng([self.seed, stage, epoch]).permutation(starts)
        ]

    def batch(self, stage: int, entries: Sequence[int], generator: torch.Generator) -> SkipGramBatch:
        """The blocks of a part of the corpus, after frequent words were dropped at random."""
        parts = [np.asarray(self.corpus.ids_P[start : start + self.words], np.int64) for start in entries]
        ids_P = torch.from_numpy(np.concatenate(parts))
        line_P = (ids_P == END).cumsum(0)
        real_P = ids_P != END
        kept_P = torch.rand(len(ids_P), generator=generator) < self.kept_W[ids_P.clamp_min(0)]
        kept_P = real_P & kept_P if bool((real_P & kept_P).any()) else real_P
        return self._blocks(ids_P[kept_P], line_P[kept_P], generator)

    def _blocks(self, ids_K: Tensor, line_K: Tensor, generator: torch.Generator) -> SkipGramBatch:
        length, window = self.config.block, self.config.window
        blocks = -(-len(ids_K) // length)
        after = blocks * length - len(ids_K)

        def spread(values_K: Tensor, outside: int) -> Tensor:
            return torch.nn.functional.pad(values_K, (window, window + after), value=outside)

        around_BN = spread(ids_K, 0).unfold(0, length + 2 * window, length).contiguous()
        lines_BN = spread(line_K, _OUTSIDE).unfold(0, length + 2 * window, length)
        inner = slice(window, window + length)
        lines_BL = lines_BN[:, inner]
        reach_BL = torch.randint(1, window + 1, (blocks, length), generator=generator)
        distance_LN = (torch.arange(length + 2 * window)[None] - window - torch.arange(length)[:, None]).abs()
        near_BLN = (distance_LN <= reach_BL[:, :, None]) & (distance_LN > 0)
        near_BLN &= (lines_BL[:, :, None] == lines_BN[:, None]) & (lines_BL != _OUTSIDE)[:, :, None]
        draw_BS = torch.rand(blocks, self.config.shared_negatives, generator=generator)
        negatives_BS = torch.searchsorted(self.noise_W, draw_BS).clamp_max(len(self.noise_W) - 1)
        # Drawn last, so that the text of a run is the same with and without pictures.
        visual_R = torch.randint(
            max(1, len(self.having)), (self.config.visual_negatives,), generator=generator
        )
        visual_R = self.having[visual_R] if len(self.having) else visual_R[:0]
        return SkipGramBatch(
            around_BN[:, inner].contiguous(),
            around_BN,
            near_BLN,
            lines_BL != _OUTSIDE,
            negatives_BS,
            visual_R,
        )


class AutoencoderRows:
    """The words that have both a text and a picture vector."""

    def __init__(
        self, text_WT: Tensor, pictures_WP: Tensor, stages: Sequence[StageSettings], seed: int
    ) -> None:
        """Raises DataError where no word has both."""
        self.text_WT, self.pictures_WP, self.stages, self.seed = text_WT, pictures_WP, stages, seed
        self.both = torch.nonzero((text_WT != 0).any(1) & (pictures_WP != 0).any(1))[:, 0].numpy()
        if not len(self.both):
            raise DataError(
                f"none of {len(text_WT)} words has both text and pictures: lower pictures.minimum"
            )

    def plan(self, stage: int, epoch: int) -> list[list[int]]:
        """Batches of words in random order."""
        order = np.random.default_rng([self.seed, stage, epoch]).permutation(self.both).tolist()
        size = self.stages[stage].batch
        return [order[first : first + size] for first in range(0, len(order), size)]

    def batch(self, stage: int, entries: Sequence[int], generator: torch.Generator) -> WordBatch:
        """Words by their two vectors."""
        ids_B = torch.tensor(entries)
        return WordBatch(ids_B, self.text_WT[ids_B], self.pictures_WP[ids_B])


class SentenceRows:
    """Pictures with two sentences or more."""

    def __init__(
        self,
        words: Sequence[str],
        records: Sequence[CaptionRecord],
        pictures_FP: Tensor,
        stages: Sequence[StageSettings],
        seed: int,
    ) -> None:
        """Raises DataError where fewer than two pictures have two sentences with known words."""
        ids = {word: number for number, word in enumerate(words)}
        self.pictures_FP, self.stages, self.seed = pictures_FP, stages, seed
        known = [
            [[ids[word] for word in split_english(caption) if word in ids] for caption in record.captions]
            for record in records
        ]
        self.sentences = [[one for one in sentences if one] for sentences in known]
        self.places = [place for place, sentences in enumerate(self.sentences) if len(sentences) > 1]
        if len(self.places) < 2:
            raise DataError(
                f"{len(self.places)} of {len(records)} pictures have two texts with known words; at least "
                "2 are "
                "needed: the grounded space compares texts of one picture"
            )

    def plan(self, stage: int, epoch: int) -> list[list[tuple[int, int, int]]]:
        """Batches of different pictures, each with two of its sentences; a batch of one has nothing to
        compare."""
        random = np.random.default_rng([self.seed, stage, epoch])
        entries = []
        for place in random.permutation(self.places).tolist():
            one, other = random.choice(len(self.sentences[place]), 2, replace=False).tolist()
            entries.append((place, one, other))
        size = max(2, self.stages[stage].batch)
        batches = [entries[first : first + size] for first in range(0, len(entries), size)]
        return batches if len(batches) == 1 or len(batches[-1]) >= size // 2 else batches[:-1]

    def batch(
        self, stage: int, entries: Sequence[tuple[int, int, int]], generator: torch.Generator
    ) -> SentencePairs:
        """Pairs of sentences as ids, and their pictures."""
        first = _padded([self.sentences[place][one] for place, one, _ in entries])
        second = _padded([self.sentences[place][other] for place, _, other in entries])
        return SentencePairs(
            first, second, self.pictures_FP[torch.tensor([place for place, _, _ in entries])]
        )


def _padded(sentences: Sequence[Sequence[int]]) -> Tensor:
    ids_BT = torch.full((len(sentences), max(map(len, sentences))), -1)
    for row, sentence in enumerate(sentences):
        ids_BT[row, : len(sentence)] = torch.tensor(sentence)
    return ids_BT
