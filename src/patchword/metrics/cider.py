"""CIDEr-D and plain CIDEr (Vedantam et al. 2015), over a caption set as in coco-caption, and as a reward.

The weight of an n-gram is its count times log(documents) - log(number of images whose references contain it).
CIDEr-D sums min(prediction, reference) * reference over the prediction's n-grams, divides by both norms, and
multiplies by a Gaussian (sigma 6) of the difference in length; plain CIDEr is the cosine. Both take the mean
over n = 1..4 and over references, times ten. "Length" is the number of bigrams, so captions of no word and of
one word have the same length, and a set of one image scores zero.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from patchword.errors import ConfigError, DataError, counted
from patchword.metrics.frequencies import (
    DOCUMENTS,
    END,
    DocumentFrequencies,
    GramTable,
    Occurrences,
    tabulate,
    with_ends,
)
from patchword.metrics.ngrams import LONGEST, CaptionSet, Grams

SIGMA = 6.0
CONVENTIONS = (*DOCUMENTS, "corpus")


def cider_values(captions: CaptionSet, grams: Sequence[Grams], clipped: bool = True) -> np.ndarray:
    """Returns the CIDEr-D of B images (plain CIDEr if not `clipped`), shape (B,).

    Document frequencies come from the references themselves.
    """
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
    """Returns the similarity of each reference with the prediction of its image for one n, shape (G,)."""
    size = len(captions.image_G)
    weight_R = (
        grams.count_R
        * (np.log(float(captions.images)) - np.log(np.maximum(1.0, grams.documents)))[grams.gram_R]
    )
    norm_G = np.sqrt(np.bincount(grams.caption_R, weights=weight_R**2, minlength=size))
    row_M = np.flatnonzero(grams.match_R >= 0)
    own_M, other_M = weight_R[row_M], weight_R[grams.match_R[row_M]]
    product_M = (np.minimum(own_M, other_M) if clipped else other_M) * own_M
    # bincount of an empty array is an array of integers, whatever its weights.
    dot_G = np.bincount(grams.caption_R[row_M], weights=product_M, minlength=size).astype(
        np.float64, copy=False
    )
    norms_G = norm_G * norm_G[prediction_of_G]
    return np.divide(dot_G, norms_G, out=dot_G, where=norms_G > 0)


class _Postings(NamedTuple):
    """For one n, the n-grams of each image's references.

    Shape legend: K pairs of image and n-gram, E entries, one per pair and reference.
    """

    key_K: np.ndarray
    """Image times number of n-grams, plus n-gram; sorted."""
    start_K: np.ndarray
    """Where the entries of each pair begin, and the end of the last."""
    gram_E: np.ndarray
    reference_E: np.ndarray
    """Number of the reference, counted over all images."""
    count_E: np.ndarray


class _Weighting(NamedTuple):
    """For one n: log inverse frequency of each n-gram of the references, and the norm of each reference."""

    idf_N: np.ndarray
    norm_G: np.ndarray


class CiderReward:
    """CIDEr-D of sampled captions, for self-critical training (Rennie et al. 2017).

    The references are prepared once. `convention` says what a document is when frequencies are counted:
    "image" (all references of an image are one document) and "caption" (each reference is one) count over a
    training set; "corpus" counts over the batch (the references of each sample are one). With `end_token`,
    the end of a caption is a token on both sides, as in the public self-critical code, which raises all
    scores.
    """

    def __init__(
        self,
        references: Sequence[Sequence[Sequence[str]]],
        convention: str = "image",
        end_token: bool = True,
        frequencies: DocumentFrequencies | None = None,
    ) -> None:
        """Prepares the references, the token lists of each image.

        `frequencies` are those of a training set, where these references are not the training set. Raises
        ConfigError for an unknown convention, or for frequencies counted under another one; DataError for an
        image without references.
        """
        _check(references, convention, end_token, frequencies)
        self.end_token = end_token
        self._first = np.cumsum([0, *map(len, references)])
        captions = with_ends([caption for group in references for caption in group], end_token)
        self._bigrams_G = np.maximum(0, np.fromiter(map(len, captions), np.int64, len(captions)) - 1)
        self._table, occurrences = tabulate(captions)
        image_G = np.repeat(np.arange(len(references)), np.diff(self._first))
        self._postings = [
            _posted(of_n, image_G, len(keys))
            for of_n, keys in zip(occurrences, self._table.keys, strict=True)
        ]
        self._frequencies = None
        if convention != "corpus":
            self._frequencies = frequencies or DocumentFrequencies.of(references, convention, end_token)
            idf = _inverse_frequencies(self._table, self._frequencies)
            self._weightings = [self._weighted(n, idf_N, slice(None)) for n, idf_N in enumerate(idf)]

    def reward(
        self,
        candidates: Sequence[Sequence[str]],
        image_indices: Sequence[int],
        finished: Sequence[bool] | None = None,
    ) -> np.ndarray:
        """Returns CIDEr-D (C,), 0 to 10, of C candidates (token lists) against their images' references.

        `finished` says which candidates ended by themselves (default: all); the others get no end token.
        Raises DataError for an image index that does not exist.
        """
        image_C = np.asarray(image_indices, np.int64)
        if len(candidates) != len(image_C):
            raise DataError(
                f"{len(candidates)} candidates came with {len(image_C)} image indices; each candidate has one"
            )
        if len(image_C) and not (0 <= image_C.min() and image_C.max() < len(self._first) - 1):
            raise DataError(
                f"image indices run from 0 to {len(self._first) - 2}, found {image_C.min()} to "
                f"{image_C.max()}"
            )
        if self.end_token:
            ended = [True] * len(candidates) if finished is None else finished
            candidates = [
                [*words, END] if end else words for words, end in zip(candidates, ended, strict=True)
            ]
        return self._scores(candidates, image_C)

    def _scores(self, candidates: Sequence[Sequence[str]], image_C: np.ndarray) -> np.ndarray:
        """CIDEr-D of the candidates; P are the pairs of candidate and reference, candidate by candidate."""
        size_C = np.diff(self._first)[image_C]
        start_C = np.cumsum(size_C) - size_C
        candidate_P = np.repeat(np.arange(len(candidates)), size_C)
        reference_P = np.arange(len(candidate_P)) + (self._first[image_C] - start_C)[candidate_P]
        table, occurrences = tabulate(candidates)
        numbers = table.numbers_in(self._table)
        weightings = self._weightings if self._frequencies is not None else self._batch_weightings(image_C)
        idf = self._candidate_idf(table, numbers, weightings, len(candidates))
        similarity_P = np.zeros(len(candidate_P))
        for n, of_n in enumerate(occurrences):
            weight_R = of_n.count_R * idf[n][of_n.gram_R]
            norm_C = np.sqrt(np.bincount(of_n.caption_R, weights=weight_R**2, minlength=len(candidates)))
            row_M, entry_M = self._matches(n, numbers[n][of_n.gram_R], image_C[of_n.caption_R])
            postings, caption_M = self._postings[n], of_n.caption_R[row_M]
            own_M = postings.count_E[entry_M] * weightings[n].idf_N[postings.gram_E[entry_M]]
            pair_M = postings.reference_E[entry_M] + (start_C - self._first[image_C])[caption_M]
            dot_P = np.bincount(
                pair_M, weights=np.minimum(weight_R[row_M], own_M) * own_M, minlength=len(candidate_P)
            )
            norms_P = weightings[n].norm_G[reference_P] * norm_C[candidate_P]
            similarity_P += np.where(norms_P > 0, dot_P / np.where(norms_P > 0, norms_P, 1.0), dot_P)
        bigrams_C = np.maximum(0, np.fromiter(map(len, candidates), np.int64, len(candidates)) - 1)
        similarity_P *= length_penalty(bigrams_C[candidate_P] - self._bigrams_G[reference_P])
        return (
            10 / LONGEST * np.bincount(candidate_P, weights=similarity_P, minlength=len(candidates)) / size_C
        )

    def _candidate_idf(
        self, table: GramTable, numbers: list[np.ndarray], weightings: Sequence[_Weighting], batch: int
    ) -> list[np.ndarray]:
        """Returns the log inverse frequency of each n-gram of the candidates.

        An n-gram that is in no document counts as in one document.
        """
        if self._frequencies is not None:
            return _inverse_frequencies(table, self._frequencies)
        unseen = np.log(float(batch))
        return [_taken(of_n.idf_N, number, unseen) for of_n, number in zip(weightings, numbers, strict=True)]

    def _matches(self, n: int, gram_R: np.ndarray, image_R: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Returns which rows of the candidates match which entries of their images' references."""
        postings = self._postings[n]
        row_F = np.flatnonzero(gram_R >= 0)
        key_F = image_R[row_F] * len(self._table.keys[n]) + gram_R[row_F]
        at_F = np.searchsorted(postings.key_K, key_F)
        found_F = at_F < len(postings.key_K)
        found_F[found_F] = postings.key_K[at_F[found_F]] == key_F[found_F]
        row_F, at_F = row_F[found_F], at_F[found_F]
        return _spread(row_F, postings.start_K[at_F], postings.start_K[at_F + 1])

    def _batch_weightings(self, image_C: np.ndarray) -> list[_Weighting]:
        """Weights under the convention "corpus": the references of each candidate are a document."""
        images, samples = np.unique(image_C, return_counts=True)
        result = []
        for n, postings in enumerate(self._postings):
            grams = len(self._table.keys[n])
            begin, end = (
                np.searchsorted(postings.key_K, images * grams),
                np.searchsorted(postings.key_K, (images + 1) * grams),
            )
            image_F, pair_F = _spread(np.arange(len(images)), begin, end)
            documents_N = np.bincount(
                postings.key_K[pair_F] % max(1, grams), weights=samples[image_F], minlength=grams
            )
            idf_N = np.log(float(len(image_C))) - np.log(np.maximum(1.0, documents_N))
            _, entry_F = _spread(pair_F, postings.start_K[pair_F], postings.start_K[pair_F + 1])
            result.append(self._weighted(n, idf_N, entry_F))
        return result

    def _weighted(self, n: int, idf_N: np.ndarray, entries: np.ndarray | slice) -> _Weighting:
        """Returns the norms of the references that the entries belong to."""
        postings = self._postings[n]
        weight_E = postings.count_E[entries] * idf_N[postings.gram_E[entries]]
        squares_G = np.bincount(
            postings.reference_E[entries], weights=weight_E**2, minlength=len(self._bigrams_G)
        )
        return _Weighting(idf_N, np.sqrt(squares_G))


def _check(
    references: Sequence[Sequence[object]],
    convention: str,
    end_token: bool,
    frequencies: DocumentFrequencies | None,
) -> None:
    if convention not in CONVENTIONS:
        raise ConfigError(f"convention {convention!r} does not exist; choose one of {', '.join(CONVENTIONS)}")
    if bare := [place for place, group in enumerate(references) if not group]:
        raise DataError(
            f"{counted(len(bare), 'image has', 'images have')} no reference, the first is number "
            f"{bare[0]}; a reward needs at least "
            "one for each"
        )
    if frequencies is not None and (frequencies.unit, frequencies.end_token) != (convention, end_token):
        raise ConfigError(
            f"the document frequencies were counted per {frequencies.unit} with "
            f"end_token={frequencies.end_token}; the reward asks for "
            f"{convention} with end_token={end_token}: use the same on both sides (corpus takes none)"
        )


def _posted(of_n: Occurrences, image_G: np.ndarray, grams: int) -> _Postings:
    """Sorts occurrences by image, then n-gram, then reference."""
    key_R = image_G[of_n.caption_R] * grams + of_n.gram_R
    order_R = np.argsort(key_R, kind="stable")
    key_E = key_R[order_R]
    start_K = np.flatnonzero(np.diff(key_E, prepend=-1))
    gram_E, reference_E, count_E = (column[order_R] for column in of_n)
    return _Postings(key_E[start_K], np.append(start_K, len(key_E)), gram_E, reference_E, count_E)


def _inverse_frequencies(table: GramTable, frequencies: DocumentFrequencies) -> list[np.ndarray]:
    """For each n: log(documents) - log(max(1, documents that contain it)) of each n-gram of the table."""
    total = np.log(float(frequencies.documents))
    numbers = table.numbers_in(frequencies.table)
    return [
        total - np.log(np.maximum(1.0, _taken(counts, number, 0)))
        for counts, number in zip(frequencies.counts, numbers, strict=True)
    ]


def _taken(values: np.ndarray, places: np.ndarray, missing: float) -> np.ndarray:
    """Returns values[places], and `missing` where a place is negative."""
    result = np.full(len(places), float(missing))
    result[places >= 0] = values[places[places >= 0]]
    return result


def _spread(labels: np.ndarray, begin: np.ndarray, end: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Lists all integers of the ranges begin..end, one range after another.

    Returns the label of each integer's range, and the integers.
    """
    size = end - begin
    offset = np.cumsum(size) - size
    return np.repeat(labels, size), np.arange(int(size.sum())) + np.repeat(begin - offset, size)
