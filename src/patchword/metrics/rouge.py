"""ROUGE-L (Lin 2004) as coco-caption computes it.

Precision and recall are each the best over the references, taken separately, and F has beta = 1.2. The
longest common subsequence is computed with bit operations (Hyyro 2004): the prediction is one integer with a
bit per word, and each reference word costs three operations.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

_BETA_SQUARED = 1.2**2


def rouge_l(references: Sequence[Sequence[str]], prediction: Sequence[str]) -> float:
    """Returns ROUGE-L of one prediction (tokens) against its references (token lists), from 0 to 1.

    A caption without words counts as one empty word, as in the reference implementation, so two empty
    captions agree fully.
    """
    words = list(prediction) or [""]
    masks: dict[str, int] = {}
    for place, word in enumerate(words):
        masks[word] = masks.get(word, 0) | 1 << place
    everything = (1 << len(words)) - 1
    precision = recall = 0.0
    for reference in references:
        length = len(reference) or 1
        common = _common_subsequence(masks, everything, reference or ("",))
        precision = max(precision, common / len(words))
        recall = max(recall, common / length)
    if not precision or not recall:
        return 0.0
    return (1 + _BETA_SQUARED) * precision * recall / (recall + _BETA_SQUARED * precision)


def rouge_values(
    references: Sequence[Sequence[Sequence[str]]], predictions: Sequence[Sequence[str]]
) -> np.ndarray:
    """ROUGE-L of B images: shape (B,)."""
    values = map(rouge_l, references, predictions)
    return np.fromiter(values, float, len(predictions))


def _common_subsequence(masks: dict[str, int], everything: int, reference: Sequence[str]) -> int:
    """Returns the length of the longest common subsequence.

    `masks` has the positions of each word of the prediction as bits.
    """
    unmatched = everything
    for mask in map(masks.get, reference):
        if mask:
            matched = unmatched & mask
            unmatched = (unmatched + matched) | (unmatched - matched)
    return (~unmatched & everything).bit_count()
