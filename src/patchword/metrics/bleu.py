"""BLEU-1 to BLEU-4 (Papineni et al. 2002) as coco-caption computes them.

Clipped n-gram counts are divided by all n-grams of the prediction, with 1e-15 added above and 1e-9 below, so
an image without a matching 4-gram gets a tiny number instead of zero. The reference length is that of the
reference closest in length, or of the shorter of two equally close ones. The brevity penalty uses the same
small numbers. The corpus value sums the counts over images first.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from patchword.metrics.ngrams import LONGEST, CaptionSet, Grams

_TINY, _SMALL = 1e-15, 1e-9


class BleuCounts(NamedTuple):
    """The counts that BLEU needs of B images; their sums over rows give the corpus."""

    correct_BN: np.ndarray
    """Clipped matches for each n-gram length."""
    guess_BN: np.ndarray
    """Number of n-grams of the prediction."""
    length_B: np.ndarray
    """Number of words of the prediction."""
    reference_B: np.ndarray
    """Number of words of the reference closest in length."""


def bleu_counts(captions: CaptionSet, grams: Sequence[Grams]) -> BleuCounts:
    """Counts the clipped matches of each image for the given n-grams (one `Grams` for each n)."""
    correct_BN = np.stack([_clipped(captions, of_n) for of_n in grams], axis=1)
    length_B = captions.lengths_G[captions.prediction_G]
    guess_BN = np.maximum(0, length_B[:, None] - np.arange(LONGEST))
    return BleuCounts(correct_BN, guess_BN, length_B, _closest(captions, length_B))


def bleu_values(counts: BleuCounts) -> np.ndarray:
    """Returns BLEU-1 to BLEU-4 for each row of counts: shape (B, 4)."""
    product_BN = np.cumprod((counts.correct_BN + _TINY) / (counts.guess_BN + _SMALL), axis=1)
    ratio_B = (counts.length_B + _TINY) / (counts.reference_B + _SMALL)
    penalty_B = np.exp(np.minimum(0.0, 1 - 1 / ratio_B))
    return product_BN ** (1 / np.arange(1, LONGEST + 1)) * penalty_B[:, None]


def corpus_bleu(counts: BleuCounts) -> np.ndarray:
    """Returns BLEU-1 to BLEU-4 of the whole set: shape (4,)."""
    return bleu_values(BleuCounts(*(column.sum(0, keepdims=True) for column in counts)))[0]


def _clipped(captions: CaptionSet, grams: Grams) -> np.ndarray:
    """Counts for each image the prediction's n-grams that occur in a reference.

    Each counts at most as often as in the reference that has it most often.
    """
    row_M = np.flatnonzero(grams.match_R >= 0)
    target_M = grams.match_R[row_M]
    if not len(row_M):
        return np.zeros(captions.images)
    starts = np.flatnonzero(np.diff(target_M, prepend=-1))
    best = np.maximum.reduceat(grams.count_R[row_M], starts)
    target = target_M[starts]
    clipped = np.minimum(best, grams.count_R[target])
    return np.bincount(captions.image_G[grams.caption_R[target]], weights=clipped, minlength=captions.images)


def _closest(captions: CaptionSet, length_B: np.ndarray) -> np.ndarray:
    """Length of each image's reference that is closest to the prediction's; of a tie, the shorter one."""
    reference_G = ~captions.prediction_G
    image_R, length_R = captions.image_G[reference_G], captions.lengths_G[reference_G]
    distance_R = np.abs(length_R - length_B[image_R])
    order_R = np.lexsort((length_R, distance_R, image_R))
    first_B = np.searchsorted(image_R[order_R], np.arange(captions.images))
    return length_R[order_R][first_B]
