"""Properties of captions that overlap with references does not measure: variety, novelty, endings.

Distinct-n (Li et al. 2016) is the share of different n-grams among all. Repetition is the share of captions
that repeat a word directly, or an n-gram of three words. Unseen is the share of captions that equal no
training caption, word for word. Dangling is the share of captions that end on a word after which English
cannot stop ("a man on a").
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

from patchword.errors import DataError
from patchword.metrics.scores import Score

FUNCTION_WORDS = frozenset(
    "a an the and or but of in on at to for with by from as into onto is are was were be its his her their "
    "this that some while very "
    "near next between behind under over through during against among toward towards".split()
)
"""English words on which a finished caption rarely ends: articles, conjunctions, prepositions, forms of
be, possessives."""


def diversity(
    predictions: Mapping[str, Sequence[str]], training: Iterable[Sequence[str]] | None = None
) -> dict[str, Score]:
    """Returns the variety of captions, given as token lists by image id.

    The names are distinct_1, distinct_2, vocabulary (different words), length (mean words), repetition,
    dangling and, with the token lists of the training captions, unseen. Values per image are given where they
    exist. Raises DataError where there is no caption.
    """
    if not predictions:
        raise DataError("there is no caption whose variety could be measured")
    captions = {image: tuple(words) for image, words in predictions.items()}
    scores = {f"distinct_{n}": Score(_distinct(captions.values(), n)) for n in (1, 2)}
    scores["vocabulary"] = Score(float(len({word for words in captions.values() for word in words})))
    scores["length"] = _mean({image: float(len(words)) for image, words in captions.items()})
    scores["repetition"] = _mean({image: float(_repeats(words)) for image, words in captions.items()})
    scores["dangling"] = _mean(
        {image: float(bool(words) and words[-1] in FUNCTION_WORDS) for image, words in captions.items()}
    )
    if training is not None:
        known = {tuple(words) for words in training}
        scores["unseen"] = _mean({image: float(words not in known) for image, words in captions.items()})
    return scores


def _mean(per_item: dict[str, float]) -> Score:
    return Score(sum(per_item.values()) / len(per_item), per_item)


def _grams(words: Sequence[str], n: int) -> list[tuple[str, ...]]:
    return [tuple(words[place : place + n]) for place in range(len(words) - n + 1)]


def _distinct(captions: Iterable[Sequence[str]], n: int) -> float:
    grams = [gram for words in captions for gram in _grams(words, n)]
    return len(set(grams)) / len(grams) if grams else 0.0


def _repeats(words: Sequence[str]) -> bool:
    trigrams = _grams(words, 3)
    return any(first == second for first, second in _grams(words, 2)) or len(set(trigrams)) < len(trigrams)
