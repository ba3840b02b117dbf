"""Captions by a template: what a detector saw, smoothed, related by its boxes, and filled into a grammar.

Kulkarni et al. 2011 (BabyTalk, CVPR); the relation by boxes also stands in Elliott and Keller 2013.

    x*       = argmax_x  sum_i log p_i(x_i) + w sum_{i<j} pair(x_i, x_j)       labels of the detections
    relation = inside | on | above | below | left of | right of | near          from two boxes
    sentence = phrase [relation phrase] ["and" phrase]*          phrase = number [attribute] noun

Nothing is learned but the pairs, which are counted in captions. It is the baseline that says only what was
seen: it invents nothing, and knows no verb. Boxes are left, top, right, bottom; y points down.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from itertools import combinations
from typing import NamedTuple

from patchword.errors import DataError

Box = tuple[float, float, float, float]
Pairs = Mapping[frozenset[str], float]
"""Score of two different names in one picture; a pair that is not there has 0."""

NUMBERS = ("no", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten")
_IRREGULAR = {
    "person": "people",
    "man": "men",
    "woman": "women",
    "child": "children",
    "knife": "knives",
    "mouse": "mice",
    "sheep": "sheep",
    "skis": "skis",
    "scissors": "scissors",
    "half": "halves",
    "leaf": "leaves",
    "wolf": "wolves",
    "foot": "feet",
    "tooth": "teeth",
}


class Sight(NamedTuple):
    """One thing that was seen: its name, how sure that is, its box, and an attribute where one is known."""

    name: str
    share: float = 1.0
    box: Box | None = None
    attribute: str | None = None


def plural(noun: str) -> str:
    """The plural of a noun; of several words the last one is put into it."""
    first, _, last = noun.rpartition(" ")
    if last in _IRREGULAR:
        many = _IRREGULAR[last]
    elif last.endswith(("s", "x", "z", "ch", "sh")):
        many = f"{last}es"
    elif last.endswith("y") and last[-2:-1] not in "aeiou":
        many = f"{last[:-1]}ies"
    else:
        many = f"{last}s"
    return f"{first} {many}".strip()


def relation(one: Box, other: Box) -> str:
    """Says how the first box lies to the second.

    "inside" needs nine tenths of the first within a second that is at least twice as large; "on" needs its
    lower edge within the upper half of the second, most of its width over it, and its centre above. A
    direction needs the larger part of the distance of the centres along its axis, and more than a quarter of
    the mean side; otherwise the two are near each other.

    Raises:
        DataError: a box without an area.
    """
    for box in (one, other):
        if not (box[2] > box[0] and box[3] > box[1]):
            raise DataError(f"box {box} has no area: expected left < right and top < bottom")
    if _overlap(one, other) >= 0.9 * _area(one) and _area(other) >= 2 * _area(one):
        return "inside"
    dx, dy = _centre(one, 0) - _centre(other, 0), _centre(one, 1) - _centre(other, 1)
    shared = min(one[2], other[2]) - max(one[0], other[0])
    middle = _centre(other, 1)
    if dy < 0 and other[1] <= one[3] <= middle and shared >= 0.6 * (one[2] - one[0]):
        return "on"
    side = (math.sqrt(_area(one)) + math.sqrt(_area(other))) / 2
    if max(abs(dx), abs(dy)) <= side / 4:
        return "near"
    if abs(dx) >= abs(dy):
        return "left of" if dx < 0 else "right of"
    return "above" if dy < 0 else "below"


def count_pairs(texts: Iterable[Sequence[str]], smoothing: float = 1.0) -> dict[frozenset[str], float]:
    """Pointwise mutual information of two names in one picture, from lists of the names of each picture.

    log of (n_ab + s) N / (n_a n_b), with `smoothing` s added to the pairs that were seen; a pair that never
    occurs is not in the result.
    """
    alone: Counter[str] = Counter()
    together: Counter[frozenset[str]] = Counter()
    pictures = 0
    for names in texts:
        present = sorted(set(names))
        pictures += 1
        alone.update(present)
        together.update(frozenset(pair) for pair in combinations(present, 2))
    return {
        pair: math.log((found + smoothing) * pictures / math.prod(alone[name] for name in pair))
        for pair, found in together.items()
    }


def smooth(
    candidates: Sequence[Mapping[str, float]],
    pairs: Pairs,
    weight: float = 0.5,
    beams: int = 64,
    distinct: bool = False,
) -> list[str]:
    """Chooses a name for each detection: the labels that maximise shares and pairs together.

    `candidates` holds, for each detection, its names with their probabilities. The search is exact while
    there are no more than `beams` labellings, and a beam search beyond. Weight 0 gives each detection its own
    best name. `distinct` gives no two of them the same name, as of concepts, each of which is there or not.

    Raises:
        DataError: a detection without a candidate of positive probability, or no name left for one.
    """
    labellings: list[tuple[float, tuple[str, ...]]] = [(0.0, ())]
    for number, shares in enumerate(candidates):
        possible = {name: share for name, share in shares.items() if share > 0}
        if not possible:
            raise DataError(f"detection {number} has no name with a probability above 0: leave it out")
        grown = [
            (
                score + math.log(share) + weight * _agreement(name, names, pairs),
                (*names, name),
            )
            for score, names in labellings
            for name, share in possible.items()
            if not (distinct and name in names)
        ]
        if not grown:
            raise DataError(
                f"detection {number} has only names that others have: give it another, or leave it out"
            )
        labellings = sorted(grown, key=lambda one: (-one[0], one[1]))[:beams]
    return list(labellings[0][1])


def _agreement(name: str, names: Sequence[str], pairs: Pairs) -> float:
    return sum(pairs.get(frozenset((name, other)), 0.0) for other in names if other != name)


def sentence(sights: Sequence[Sight], most: int = 4) -> str:
    """Says what was seen: counts, attributes, the relation of the two surest things, and the others.

    Things of one name and attribute are counted together. `most` bounds the number of phrases. A relation is
    said where each of the two surest phrases is of one thing with a box. Without a sight it says so.

    Raises:
        DataError: `most` below 1.
    """
    if most < 1:
        raise DataError(f"most is {most}: a sentence names at least one thing")
    if not sights:
        return "nothing that has a name"
    groups: dict[tuple[str, str | None], list[Sight]] = {}
    for sight in sorted(sights, key=lambda one: -one.share):
        groups.setdefault((sight.name, sight.attribute), []).append(sight)
    kept = list(groups.values())[:most]
    phrases = [phrase(len(same), same[0].name, same[0].attribute) for same in kept]
    related = _related(kept)
    if related is not None:
        first, second, how = related
        rest = [text for number, text in enumerate(phrases) if number not in (first, second)]
        phrases = [f"{phrases[first]} {how} {phrases[second]}", *rest]
    return phrases[0] if len(phrases) == 1 else f"{', '.join(phrases[:-1])} and {phrases[-1]}"


def _related(groups: Sequence[Sequence[Sight]]) -> tuple[int, int, str] | None:
    """Places of the two surest phrases that can be related, smaller thing first, and how."""
    single = [number for number, same in enumerate(groups) if len(same) == 1 and same[0].box is not None][:2]
    if len(single) < 2:
        return None
    first, second = single
    one, other = groups[first][0].box, groups[second][0].box
    if one is None or other is None:
        return None
    if _area(one) > _area(other):  # "a cup on a table", and not "a table below a cup"
        first, second, one, other = second, first, other, one
    return first, second, relation(one, other)


def phrase(count: int, noun: str, attribute: str | None = None) -> str:
    """Names `count` things of one kind with its article or number: "a dog", "two red cups", "many sheep"."""
    words = f"{attribute} {noun}" if attribute else noun
    if count == 1:
        return f"{'an' if words[:1] in 'aeiou' else 'a'} {words}"
    number = NUMBERS[count] if count < len(NUMBERS) else "many"
    return f"{number} {plural(words)}"


def _area(box: Box) -> float:
    return (box[2] - box[0]) * (box[3] - box[1])


def _overlap(one: Box, other: Box) -> float:
    width = min(one[2], other[2]) - max(one[0], other[0])
    height = min(one[3], other[3]) - max(one[1], other[1])
    return max(0.0, width) * max(0.0, height)


def _centre(box: Box, axis: int) -> float:
    return (box[axis] + box[axis + 2]) / 2
