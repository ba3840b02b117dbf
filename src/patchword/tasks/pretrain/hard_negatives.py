"""False texts that are hard to tell: the true text with one word replaced by another of its kind.

Two words are of one kind where captions put both between the same neighbours: "a [red] ring", "a [blue]
ring".
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence

import numpy as np

Kinds = Mapping[int, tuple[int, ...]]
"""Of each word those that may stand in its place, the likeliest first."""


def kinds_of(
    texts: Sequence[Sequence[int]], least: int = 3, most: int = 20, without: Sequence[int] = ()
) -> dict[int, tuple[int, ...]]:
    """Of each token those with which it shares at least `least` different pairs of neighbours.

    `without` names tokens that are never replaced nor put in, such as the unknown one.
    """
    places: dict[tuple[int, int], set[int]] = defaultdict(set)
    for text in texts:
        framed = [-1, *text, -2]
        for before, token, after in zip(framed, framed[1:], framed[2:], strict=False):
            if token not in without:
                places[before, after].add(token)
    shared: dict[int, Counter[int]] = defaultdict(Counter)
    for tokens in places.values():
        if 1 < len(tokens) <= 200:  # a place that holds everything says nothing of a kind
            for one in tokens:
                shared[one].update(other for other in tokens if other != one)
    return {
        token: kept
        for token, counts in shared.items()
        if (kept := tuple(other for other, count in counts.most_common(most) if count >= least))
    }


def replaced(text: Sequence[int], kinds: Kinds, generator: np.random.Generator) -> list[int] | None:
    """The text with one word replaced by one of its kind that does not occur in it; None where no word has
    any."""
    words = list(text)
    for place in generator.permutation(len(words)):
        others = [other for other in kinds.get(words[place], ()) if other not in words]
        if others:
            words[place] = others[int(generator.integers(len(others)))]
            return words
    return None
