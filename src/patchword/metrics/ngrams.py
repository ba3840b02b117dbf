"""Counts the n-grams of a caption set in one pass, for BLEU and CIDEr.

Captions are in sequence, image by image: the prediction, then its references. Words become integers. An
n-gram becomes the number of the pair (number of its first n-1 words, last word), counted separately for each
n, so that any vocabulary fits. One sort per n then brings equal n-grams together, in the order of the
captions, and everything else is sums over runs.

Shape legend: T words, G captions, B images, R rows (one per n-gram and caption that contains it).
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Sequence
from itertools import chain, count
from typing import NamedTuple

import numpy as np

LONGEST = 4
"""BLEU and CIDEr count n-grams of one to four words."""


class CaptionSet(NamedTuple):
    """Predictions and references of B images as integers."""

    words_T: np.ndarray
    """Word numbers of all captions, in sequence."""
    lengths_G: np.ndarray
    """Number of words in each caption."""
    image_G: np.ndarray
    """Image of each caption, in ascending order."""
    prediction_G: np.ndarray
    """True for the first caption of each image: the prediction."""
    images: int


class Grams(NamedTuple):
    """The n-grams of one n: one row per n-gram and caption, sorted by n-gram, then by caption."""

    gram_R: np.ndarray
    caption_R: np.ndarray
    count_R: np.ndarray
    match_R: np.ndarray
    """For a reference's row: the row of the same n-gram in the prediction of that image, or -1."""
    grams: int
    """Number of different n-grams."""
    documents: np.ndarray
    """For each n-gram, the number of images whose references contain it."""


def number_tokens(captions: Sequence[Sequence[str]]) -> tuple[np.ndarray, np.ndarray, dict[str, int]]:
    """Replaces tokens by numbers.

    Returns all captions in sequence (T,), their lengths (G,), and the numbering.
    """
    numbers: dict[str, int] = defaultdict(count().__next__)
    total = sum(map(len, captions))
    words_T = np.fromiter(map(numbers.__getitem__, chain.from_iterable(captions)), np.int64, total)
    return words_T, np.fromiter(map(len, captions), np.int64, len(captions)), dict(numbers)


def number_words(captions: Sequence[Sequence[str]]) -> tuple[np.ndarray, np.ndarray, dict[str, int]]:
    """Numbers tokens as `number_tokens` does, but a token that contains white space counts as several words.

    The tokenizer joins `22 3/4` with a no-break space, and the reference implementations of BLEU and CIDEr
    split their strings again.
    """
    numbered = number_tokens(captions)
    if any(word.split() != [word] for word in numbered[2]):
        return number_tokens([" ".join(caption).split() for caption in captions])
    return numbered


def caption_set(
    references: Sequence[Sequence[Sequence[str]]], predictions: Sequence[Sequence[str]]
) -> CaptionSet:
    """Numbers the words of B predictions (token lists) and of the references of the same B images."""
    captions = list(
        chain.from_iterable(
            (prediction, *refs) for prediction, refs in zip(predictions, references, strict=True)
        )
    )
    words_T, lengths_G, _ = number_words(captions)
    per_image = np.fromiter((1 + len(refs) for refs in references), np.int64, len(references))
    image_G = np.repeat(np.arange(len(references)), per_image)
    prediction_G = np.zeros(len(captions), bool)
    prediction_G[np.cumsum(per_image) - per_image] = True
    return CaptionSet(words_T, lengths_G, image_G, prediction_G, len(references))


def positions(lengths_G: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Returns for each of T words the number of its caption, and the number of words from it to the end."""
    caption_T = np.repeat(np.arange(len(lengths_G)), lengths_G)
    ends_G = np.cumsum(lengths_G)
    return caption_T, ends_G[caption_T] - np.arange(len(caption_T))


def gram_keys(
    gram_T: np.ndarray, words_T: np.ndarray, remaining_T: np.ndarray, n: int, vocabulary: int
) -> tuple[np.ndarray, np.ndarray]:
    """Returns positions at which n words follow, and the key of each n-gram.

    The key is the number of its first n-1 words times the vocabulary plus the last word. `gram_T` numbers the
    (n-1)-gram that begins at each position, and is negative where it is unknown (no key is made); for n=1 it
    is ignored.
    """
    if n == 1:
        place_S = np.flatnonzero((remaining_T >= 1) & (words_T >= 0))
        return place_S, words_T[place_S]
    place_S = np.flatnonzero((remaining_T >= n) & (gram_T >= 0))
    last_S = words_T[place_S + n - 1]
    place_S, last_S = place_S[last_S >= 0], last_S[last_S >= 0]
    return place_S, gram_T[place_S] * vocabulary + last_S


def sort_keys(place_S: np.ndarray, key_S: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Sorts by key, then by place; returns (places, keys, True where a new key begins)."""
    bits = int(place_S[-1]).bit_length() if len(place_S) else 1
    if len(key_S) and int(key_S.max()) < 1 << (62 - bits):
        # With key and place in one integer, a plain sort is several times faster than an argsort.
        packed_S = np.sort((key_S << bits) | place_S)
        key_S, place_S = packed_S >> bits, packed_S & ((1 << bits) - 1)
    else:
        order_S = np.argsort(key_S, kind="stable")
        key_S, place_S = key_S[order_S], place_S[order_S]
    new_S = np.ones(len(key_S), bool)
    np.not_equal(key_S[1:], key_S[:-1], out=new_S[1:])
    return place_S, key_S, new_S


def count_grams(captions: CaptionSet) -> Iterator[Grams]:
    """Yields the n-grams of n = 1, 2, 3, 4 in turn."""
    caption_T, remaining_T = positions(captions.lengths_G)
    gram_T = np.zeros(len(caption_T), np.int64)
    vocabulary = int(captions.words_T.max(initial=0)) + 1
    for n in range(1, LONGEST + 1):
        place_S, _, new_S = sort_keys(*gram_keys(gram_T, captions.words_T, remaining_T, n, vocabulary))
        number_S = np.cumsum(new_S) - 1
        gram_T[place_S] = number_S
        yield _rows(captions, number_S, caption_T[place_S], new_S)


def runs(new_S: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Returns starts and lengths of runs from flags of their first elements."""
    starts = np.flatnonzero(new_S)
    return starts, np.diff(starts, append=len(new_S))


def _rows(captions: CaptionSet, number_S: np.ndarray, caption_S: np.ndarray, new_S: np.ndarray) -> Grams:
    """Merges repeated n-grams of one caption into rows, and finds the rows that belong to the same image."""
    new_row_S = new_S.copy()
    new_row_S[1:] |= caption_S[1:] != caption_S[:-1]
    first_R, count_R = runs(new_row_S)
    gram_R, caption_R = number_S[first_R], caption_S[first_R]
    image_R = captions.image_G[caption_R]
    is_prediction_R = captions.prediction_G[caption_R]
    new_group_R = new_S[first_R]
    new_group_R[1:] |= image_R[1:] != image_R[:-1]
    # Within a group (one n-gram, one image) the prediction's row, if there is one, comes first.
    first_K, size_K = runs(new_group_R)
    has_prediction_K = is_prediction_R[first_K]
    match_R = np.repeat(np.where(has_prediction_K, first_K, -1), size_K)
    match_R[is_prediction_R] = -1
    grams = int(gram_R[-1]) + 1 if len(gram_R) else 0
    documents = np.bincount(gram_R[first_K[size_K > has_prediction_K]], minlength=grams)
    return Grams(gram_R, caption_R, count_R, match_R, grams, documents)
