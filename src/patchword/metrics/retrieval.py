"""Image-text retrieval: recall at K in both directions, median and mean rank, rSum.

Values are for the whole set or the mean of folds (COCO 1K and 5K). The convention is that of VSE++ (Faghri et
al. 2018), which the field has kept: an image's rank is that of the best of its own captions among all
captions; a caption's rank is that of its image among all images; recalls are percentages; the median rank is
floor(median of 0-based ranks) + 1; rSum adds the six recalls. "COCO 1K" is the mean over consecutive blocks
of 1,000 images.

Shape legend: N images, C captions.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from patchword.errors import DataError, counted
from patchword.metrics.scores import Score

RECALLS_AT = (1, 5, 10)


class Ranks(NamedTuple):
    """0-based ranks: the number of items before the correct one."""

    image_to_text: np.ndarray
    """(N,) for each image, the rank of the best of its captions among all C captions."""
    text_to_image: np.ndarray
    """(C,) for each caption, the rank of its image among all N images."""


def retrieval_ranks(scores_NC: np.ndarray, image_of_caption: np.ndarray | None = None) -> Ranks:
    """Computes ranks by counting, without sorting.

    scores_NC: higher is better. image_of_caption: (C,) row of each caption's image; None means that captions
    are in image order, the same number for each image. Of equal scores, the item with the lower index comes
    first, so a model that gives every pair the same score gets the recall of chance, not 100. Raises
    DataError for NaN (which a sort would silently put first), for indices out of range, and for images
    without a caption.
    """
    scores_NC = np.asarray(scores_NC)
    owner_C = _owners(scores_NC, image_of_caption)
    images, captions = scores_NC.shape
    own_C = scores_NC[owner_C, np.arange(captions)]
    order_C = np.argsort(owner_C, kind="stable")
    in_order = bool((order_C == np.arange(captions)).all())
    sorted_own_C = own_C[order_C]
    bounds = np.searchsorted(owner_C[order_C], np.arange(images + 1))

    image_ranks_N = np.empty(images, dtype=np.int64)
    before_C = np.zeros(captions, dtype=np.int64)
    for i in range(images):
        row_C = scores_NC[i]
        own = np.sort(order_C[bounds[i] : bounds[i + 1]])
        best = own[np.argmax(row_C[own])]
        image_ranks_N[i] = np.count_nonzero(row_C > row_C[best]) + np.count_nonzero(
            row_C[:best] == row_C[best]
        )
        sorted_row_C = row_C if in_order else row_C[order_C]
        # With equal scores, image i ranks before a later image; it ranks before an earlier one only with a
        # higher score.
        later = bounds[i + 1]
        before_C[:later] += sorted_row_C[:later] > sorted_own_C[:later]
        before_C[later:] += sorted_row_C[later:] >= sorted_own_C[later:]
    text_ranks_C = np.empty_like(before_C)
    text_ranks_C[order_C] = before_C
    return Ranks(image_ranks_N, text_ranks_C)


def retrieval(
    scores_NC: np.ndarray, image_of_caption: np.ndarray | None = None, fold_size: int | None = None
) -> dict[str, Score]:
    """Returns recalls, ranks and rSum under the names `i2t_R@1` … `t2i_meanR`, `rSum`.

    scores_NC, image_of_caption: as for `retrieval_ranks`. fold_size: 1000 gives the COCO 1K numbers of the 5K
    split, where every value is the mean over the folds (so a median rank can be 4.2); None ranks over
    everything. Recalls and rSum are percentages, ranks start at 1. Raises DataError as `retrieval_ranks`
    does, and where the images do not divide into folds.
    """
    scores_NC = np.asarray(scores_NC)
    if fold_size is None:
        return {
            name: Score(value)
            for name, value in _summary(retrieval_ranks(scores_NC, image_of_caption)).items()
        }
    owner_C = _owners(scores_NC, image_of_caption)
    images = len(scores_NC)
    if fold_size < 1 or images % fold_size:
        raise DataError(
            f"folds: {counted(images, 'image does', 'images do')} not divide into folds of "
            f"{fold_size}; give a divisor or rank over "
            "the whole set"
        )
    folds = []
    for start in range(0, images, fold_size):
        mine = np.flatnonzero((owner_C >= start) & (owner_C < start + fold_size))
        # A slice is a view; a list of columns would copy the block.
        together = mine[-1] - mine[0] + 1 == len(mine)
        columns = slice(mine[0], mine[-1] + 1) if together else mine
        folds.append(
            _summary(retrieval_ranks(scores_NC[start : start + fold_size, columns], owner_C[mine] - start))
        )
    return {name: Score(float(np.mean([fold[name] for fold in folds]))) for name in folds[0]}


def _owners(scores_NC: np.ndarray, image_of_caption: np.ndarray | None) -> np.ndarray:
    """Returns the row of each caption's image, (C,), after all checks."""
    if scores_NC.ndim != 2 or 0 in scores_NC.shape:
        raise DataError(
            f"retrieval scores have shape {scores_NC.shape}; expected (images, captions), both at least 1"
        )
    if np.isnan(np.min(scores_NC)):  # min propagates NaN and needs no second array
        row, column = np.argwhere(np.isnan(scores_NC))[0]
        raise DataError(
            f"the score of image {row} and caption {column} is NaN: it has no rank; find out which "
            "embedding is NaN"
        )
    images, captions = scores_NC.shape
    if image_of_caption is None:
        if captions % images:
            raise DataError(
                f"{counted(captions, 'caption does', 'captions do')} not divide among "
                f"{counted(images, 'image')}; give image_of_caption"
            )
        return np.repeat(np.arange(images), captions // images)
    owner_C = np.asarray(image_of_caption)
    if owner_C.shape != (captions,) or owner_C.dtype.kind not in "iu":
        raise DataError(
            f"image_of_caption is {owner_C.dtype} of shape {owner_C.shape}; expected {captions} integers, "
            "one per caption"
        )
    wrong = np.flatnonzero((owner_C < 0) | (owner_C >= images))
    if len(wrong):
        raise DataError(
            f"caption {wrong[0]} belongs to image row {owner_C[wrong[0]]}, but the scores have rows 0 to "
            f"{images - 1}"
        )
    without = np.flatnonzero(np.bincount(owner_C, minlength=images) == 0)
    if len(without):
        raise DataError(
            f"{counted(len(without), 'image has', 'images have')} no caption (first: row "
            f"{without[0]}): they have no rank; leave "
            "them out of the scores"
        )
    return owner_C


def _summary(ranks: Ranks) -> dict[str, float]:
    found = {}
    for way, ranks_M in (("i2t", ranks.image_to_text), ("t2i", ranks.text_to_image)):
        for k in RECALLS_AT:
            found[f"{way}_R@{k}"] = float(100.0 * np.mean(ranks_M < k))
        found[f"{way}_medR"] = float(np.floor(np.median(ranks_M)) + 1)
        found[f"{way}_meanR"] = float(np.mean(ranks_M) + 1)
    found["rSum"] = sum(value for name, value in found.items() if "_R@" in name)
    return found
