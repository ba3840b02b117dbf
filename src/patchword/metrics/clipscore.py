"""CLIPScore and RefCLIPScore (Hessel et al. 2021) from embeddings of a two-tower model.

CLIPScore = 2.5 max(cos(caption, image), 0). RefCLIPScore is its harmonic mean with max(0, best cosine of the
caption and a reference). The published numbers use CLIP ViT-B/32 and the text "A photo depicts " + caption;
numbers of other towers are not comparable.

Shape legend: B captions, R references, E width of the shared space.
"""

from __future__ import annotations

import numpy as np

from patchword.errors import DataError
from patchword.metrics.scores import Score

PREFIX = "A photo depicts "
WEIGHT = 2.5


def clip_score(image_BE: np.ndarray, caption_BE: np.ndarray) -> dict[str, Score]:
    """Returns CLIPScore of B pairs, per item by row.

    Embeddings need no normalisation. Raises DataError for shapes that differ, NaN and zeros.
    """
    image_BE, caption_BE = _unit(image_BE, "image"), _unit(caption_BE, "caption")
    if image_BE.shape != caption_BE.shape:
        raise DataError(
            f"CLIPScore: images are {image_BE.shape} and captions {caption_BE.shape}; expected one caption "
            "for each image"
        )
    values = WEIGHT * np.maximum((image_BE * caption_BE).sum(axis=1), 0.0)
    return {"CLIPScore": Score(float(values.mean()), dict(enumerate(values.tolist())))}


def ref_clip_score(
    image_BE: np.ndarray, caption_BE: np.ndarray, reference_RE: np.ndarray, caption_of_reference: np.ndarray
) -> dict[str, Score]:
    """Returns CLIPScore and RefCLIPScore; caption_of_reference is the caption's row of each reference, (R,).

    The reference cosine is cut at 0 as in the paper (its published script does not do this, and gives NaN
    where both are 0; here that is 0). Raises DataError as `clip_score` does, and for a caption without a
    reference.
    """
    found = clip_score(image_BE, caption_BE)
    caption_BE, reference_RE = _unit(caption_BE, "caption"), _unit(reference_RE, "reference")
    owners_R = np.asarray(caption_of_reference)
    if owners_R.shape != (len(reference_RE),) or owners_R.min() < 0 or owners_R.max() >= len(caption_BE):
        raise DataError(
            f"RefCLIPScore: {len(reference_RE)} references need as many caption rows between 0 and "
            f"{len(caption_BE) - 1}"
        )
    best_B = np.full(len(caption_BE), -np.inf)
    np.maximum.at(best_B, owners_R, (caption_BE[owners_R] * reference_RE).sum(axis=1))
    if np.isinf(best_B).any():
        raise DataError(f"RefCLIPScore: caption row {int(np.argmax(np.isinf(best_B)))} has no reference")
    best_B = np.maximum(best_B, 0.0)
    own_B = np.array(list(found["CLIPScore"].values_per_item().values()))
    total_B = own_B + best_B
    values = np.divide(2 * own_B * best_B, total_B, out=np.zeros_like(total_B), where=total_B > 0)
    return {**found, "RefCLIPScore": Score(float(values.mean()), dict(enumerate(values.tolist())))}


def _unit(rows_XE: np.ndarray, what: str) -> np.ndarray:
    rows_XE = np.asarray(rows_XE, dtype=np.float64)
    if rows_XE.ndim != 2 or not len(rows_XE):
        raise DataError(f"CLIPScore: {what} embeddings have shape {rows_XE.shape}; expected (rows, width)")
    norms_X1 = np.linalg.norm(rows_XE, axis=1, keepdims=True)
    wrong = ~(np.isfinite(norms_X1) & (norms_X1 > 0))
    if wrong.any():
        raise DataError(
            f"CLIPScore: the {what} embedding of row {int(np.argmax(wrong))} is zero or not finite; it has "
            "no direction"
        )
    return rows_XE / norms_X1
