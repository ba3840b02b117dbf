"""METEOR's choice among matches (Denkowski and Lavie 2014, section 3): a beam search over reference words.

It prefers the alignment that covers most words, then the one with fewest chunks, then the one with the
smallest distances. The released program has rules beyond the paper; they were found by experiment and are
kept, because scores depend on them:

* a match whose words no other match touches is taken without search;
* matches of modules 1 to 3 count half a word, and the sum is truncated to an integer after each side, so a
  single one adds nothing;
* the distance of a match counts against its later rivals and the decision to skip, not against itself;
* among equals, the one found first wins; a path's skip comes after its matches.
"""

from __future__ import annotations

from collections.abc import Sequence
from operator import itemgetter
from typing import Any

BEAM = 40

# Plain tuples, because millions of them are made.
Match = tuple[int, int, int, int, int]
"""Module, first word and number of words in the reference, first word and number of words in the
candidate."""
_Path = tuple[int, int, int, int, Any]
"""A partial alignment: its rank; the candidate words it uses, as bits; the reference word from which it
continues; the candidate word that would continue its open chunk (-1: none is open); its matches, the last
one first, as nested pairs. The rank is one integer with the order of (most words covered, fewest closed
chunks, smallest distance); see `_search`."""


def align(matches: Sequence[Sequence[Match]]) -> tuple[list[Match], int]:
    """Returns the matches that are kept, by reference position, and the number of chunks they form.

    matches: by their first reference word, in the order in which they are tried.
    """
    certain, doubtful = _certain(matches)
    kept = _search(matches, certain) if doubtful else list(certain.values())
    chunks, end, other_end = 0, -1, -1
    for _, j, other_words, i, words in kept:
        chunks += j != other_end or i != end
        end, other_end = i + words, j + other_words
    return kept, chunks


def _certain(matches: Sequence[Sequence[Match]]) -> tuple[dict[int, Match], bool]:
    """Returns matches whose words no other match touches, by reference position; and if there are others."""
    once = twice = other_once = other_twice = count = 0
    for options in matches:
        for _, j, other_words, i, words in options:
            bits, other_bits = ((1 << words) - 1) << i, ((1 << other_words) - 1) << j
            twice |= once & bits
            once |= bits
            other_twice |= other_once & other_bits
            other_once |= other_bits
            count += 1
    certain = {}
    for options in matches:
        if len(options) == 1:
            _, j, other_words, i, words = options[0]
            if not (((1 << words) - 1) << i & twice or ((1 << other_words) - 1) << j & other_twice):
                certain[j] = options[0]
    return certain, len(certain) < count


def _search(matches: Sequence[Sequence[Match]], certain: dict[int, Match]) -> list[Match]:
    # One chunk outweighs all distances together, and one covered word outweighs all chunks.
    chunk = 1 + sum(abs(i - j) for options in matches for _, j, _, i, _ in options)
    word = chunk * (len(matches) + 2)
    paths: list[_Path] = [(0, 0, 0, -1, None)]
    for j, options in enumerate(matches):
        if j in certain:
            paths = _taken(paths, certain[j], chunk, word)
        elif options:
            paths = _branched(paths, j, options, chunk, word)
        else:
            # A reference word without a match closes the chunk.
            paths = [
                path if path[3] < 0 or path[2] > j else (path[0] + chunk, path[1], path[2], -1, path[4])
                for path in paths
            ]
        if len(paths) > 1:
            paths.sort(key=itemgetter(0))
            del paths[BEAM:]
    best = min(paths, key=lambda path: path[0] + (chunk if path[3] >= 0 else 0))
    kept, link = [], best[4]
    while link is not None:
        link, match = link
        kept.append(match)
    return kept[::-1]


def _covered(match: Match) -> int:
    """int(int(covered + words / 2) + other_words / 2) of the released program, in integers."""
    return 2 if match[0] == 0 else match[2] // 2 + match[4] // 2


def _taken(paths: list[_Path], match: Match, chunk: int, word: int) -> list[_Path]:
    """Extends every path by a match that no other touches; no earlier match covers its words."""
    _, j, other_words, i, words = match
    gain, end, other_end = word * _covered(match), i + words, j + other_words
    return [
        (rank - gain + (chunk if going_on >= 0 and going_on != i else 0), used, other_end, end, (kept, match))
        for rank, used, _, going_on, kept in paths
    ]


def _branched(paths: list[_Path], j: int, options: Sequence[Match], chunk: int, word: int) -> list[_Path]:
    """Extends every path by every option that is still free and, after these, by none."""
    found: list[_Path] = []
    moves = [
        (
            ((1 << match[4]) - 1) << match[3],
            match[3],
            match[3] + match[4],
            j + match[2],
            word * _covered(match),
            abs(match[3] - j),
            match,
        )
        for match in options
    ]
    for path in paths:
        rank, used, next_reference, going_on, kept = path
        if next_reference > j:
            found.append(path)
            continue
        for bits, i, end, other_end, gain, distance, match in moves:
            if not used & bits:
                broken = chunk if going_on >= 0 and going_on != i else 0
                found.append((rank - gain + broken, used | bits, other_end, end, (kept, match)))
                rank += distance
        found.append((rank + chunk if going_on >= 0 else rank, used, next_reference, -1, kept))
    return found
