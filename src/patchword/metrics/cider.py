"""CIDEr-D and plain CIDEr (Vedantam et al. 2015) over a caption set, as coco-caption computes them.

Each n-gram weighs its count times log(documents) - log(number of images whose references hold it). CIDEr-D sums
min(prediction, reference) * reference over the prediction's n-grams, divides by both norms, and multiplies by a Gaussian (sigma 6) of
the difference in length; plain CIDEr is the cosine. Both take the mean over n = 1..4 and over references, times ten. "Length" is
the number of bigrams, so that captions of no word and of one word are equally long, and a set of one image scores zero.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from patchword.metrics.ngrams import CaptionSet, Grams

SIGMA = 6.0


def cider_values(captions: CaptionSet, grams: Sequence[Grams], clipped: bool = True) -> np.ndarray:
    """CIDEr-D of B images (plain CIDEr if not `clipped`), shape (B,); document frequencies come from the references themselves."""
    reference_G = ~captions.prediction_G
    prediction_of_G = np.flatnonzero(captions.prediction_G)[captions.image_G]
    similarity_G = np.zeros(len(captions.image_G))
    for of_n in grams:
        similarity_G += _similarity(captions, of_n, prediction_of_G, clipped)
    if clipped:
        bigrams_G = np.maximum(0, captions.lengths_G - 1)
        similarity_G *= length_penalty(bigrams_G[prediction_of_G] - bigrams_G)
    image_R = captions.image_G[reference_G]
    total_B = np.bincount(image_R, weights=similarity_G[reference_G], minlength=captions.images)
    return 10 * total_B / len(grams) / np.bincount(image_R, minlength=captions.images)


def length_penalty(difference: np.ndarray) -> np.ndarray:
    """Gaussian of the difference in bigrams between prediction and reference."""
    return np.exp(-(difference.astype(float) ** 2) / (2 * SIGMA**2))


def _similarity(captions: CaptionSet, grams: Grams, prediction_of_G: np.ndarray, clipped: bool) -> np.ndarray:
    """Similarity of each reference with the prediction of its image for one n, shape (G,)."""
    size = len(captions.image_G)
    weight_R = grams.count_R * (np.log(float(captions.images)) - np.log(np.maximum(1.0, grams.documents)))[grams.gram_R]
    norm_G = np.sqrt(np.bincount(grams.caption_R, weights=weight_R**2, minlength=size))
    row_M = np.flatnonzero(grams.match_R >= 0)
    own_M, other_M = weight_R[row_M], weight_R[grams.match_R[row_M]]
    product_M = (np.minimum(own_M, other_M) if clipped else other_M) * own_M
    # bincount of nothing at all is an array of integers, whatever its weights
    dot_G = np.bincount(grams.caption_R[row_M], weights=product_M, minlength=size).astype(np.float64, copy=False)
    norms_G = norm_G * norm_G[prediction_of_G]
    return np.divide(dot_G, norms_G, out=dot_G, where=norms_G > 0)
