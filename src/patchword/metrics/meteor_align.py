"""METEOR's alignment of two sentences (Denkowski and Lavie 2014, section 3): which words match, and which matches are kept.

Four modules propose matches: 0 the same word, 1 the same stem, 2 a common WordNet synonym set, 3 a pair of the paraphrase table. A beam
search keeps, in this order, the alignment that covers most words, has fewest chunks, and the smallest distances. What the released
program does beyond the paper was found by experiment with it and is kept, because scores depend on it:

* a match whose words no other match touches is taken without search;
* a pair listed in both directions of the table counts as two matches, so that it is not taken in this way;
* matches of modules 1 to 3 weigh half a word, and the sum is cut to an integer after each side: a single one adds nothing;
* the distance of a match burdens its later rivals and the decision to skip, not the match itself;
* among equals, the one found first wins; a path's skip stands after its matches.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from patchword.metrics.meteor_stem import stem
from patchword.metrics.meteor_tables import _MASK, LONGEST_PHRASE, POWERS, Tables, word_hash

BEAM = 40
# WordNet's rules of detachment, in this order; the first base that is a lemma is taken, and only that one.
DETACHMENTS = (
    ("s", ""), ("ses", "s"), ("xes", "x"), ("zes", "z"), ("ches", "ch"), ("shes", "sh"), ("men", "man"), ("ies", "y"),
    ("es", "e"), ("es", ""), ("ed", "e"), ("ed", ""), ("ing", "e"), ("ing", ""), ("er", ""), ("est", ""), ("er", "e"), ("est", "e"),
)  # fmt: skip


class Match(NamedTuple):
    """Words of the candidate and of the reference that one module matched."""

    module: int
    reference: int
    reference_words: int
    candidate: int
    candidate_words: int


class _Path(NamedTuple):
    """One partial alignment of the beam."""

    covered: int
    chunks: int
    """Chunks that are closed."""
    distance: int
    used: int
    """Bit i is set where candidate word i is matched."""
    next_reference: int
    next_candidate: int
    """Where the open chunk would go on; -1 where none is open."""
    matches: tuple[Match, ...]


class Sentence(NamedTuple):
    """A sentence with the phrases in it that have paraphrases."""

    words: list[str]
    phrases: list[tuple[int, int, int]]
    """(start, words, position in the table) of every phrase that the paraphrase table lists."""
    positions: dict[int, list[int]]
    """Position in the table -> places in `phrases`."""


class Aligner:
    """Aligns sentences and remembers what it has looked up about words and phrases."""

    def __init__(self, tables: Tables) -> None:
        self._tables = tables
        self._hashes: dict[str, int] = {}
        self._stems: dict[str, str] = {}
        self._synsets: dict[str, frozenset[str]] = {}
        self._modules: dict[tuple[str, str], tuple[int, ...]] = {}
        self._partners: dict[int, frozenset[int]] = {}

    def prepare(self, words: list[str]) -> Sentence:
        """Find the phrases of a sentence that the paraphrase table lists."""
        if not words:
            return Sentence(words, [], {})
        hashes = self._hashes
        values = []
        for word in words:
            if word not in hashes:
                hashes[word] = word_hash(word)
            values.append(hashes[word])
        places, keys = [], []
        for start in range(len(words)):
            total = 0
            for length, value in enumerate(values[start : start + LONGEST_PHRASE], 1):
                total = (total + value * POWERS[length - 1]) & _MASK
                places.append((start, length))
                keys.append(total)
        keys_X = np.array(keys, dtype=np.uint64)
        phrases_P = self._tables.phrases_P
        positions = np.minimum(np.searchsorted(phrases_P, keys_X), len(phrases_P) - 1)
        found = np.flatnonzero(phrases_P[positions] == keys_X)
        phrases = [(*places[x], position) for x, position in zip(found.tolist(), positions[found].tolist(), strict=True)]
        by_position: dict[int, list[int]] = {}
        for place, (_, _, position) in enumerate(phrases):
            by_position.setdefault(position, []).append(place)
        return Sentence(words, phrases, by_position)

    def matches(self, candidate: Sentence, reference: Sentence) -> list[list[Match]]:
        """All matches, by the position of their first reference word."""
        found: list[list[Match]] = [[] for _ in reference.words]
        known = self._modules
        by_module: list[list[Match]] = [[], [], []]
        for j, other in enumerate(reference.words):
            for i, word in enumerate(candidate.words):
                modules = known.get((word, other))
                if modules is None:
                    modules = known[word, other] = self._word_modules(word, other)
                if modules:
                    for module in modules:
                        by_module[module].append(Match(module, j, 1, i, 1))
        for match in by_module[0] + by_module[1] + by_module[2] + self._paraphrases(candidate, reference):
            found[match.reference].append(match)
        return found

    def align(self, candidate: Sentence, reference: Sentence) -> tuple[list[Match], int]:
        """The matches kept, by reference position, and the number of chunks they form."""
        matches = self.matches(candidate, reference)
        certain = _untouched(matches, len(candidate.words), len(reference.words))
        paths = [_Path(0, 0, 0, 0, 0, -1, ())]
        for j, options in enumerate(matches):
            paths = _step(paths, j, certain.get(j), options)
        best = min((_closed(path) for path in paths), key=_rank)
        return list(best.matches), best.chunks

    def _word_modules(self, word: str, other: str) -> tuple[int, ...]:
        if word == other:
            return (0,)
        same_stem = (1,) if self._stem(word) == self._stem(other) else ()
        return same_stem + ((2,) if not self._synsets_of(word).isdisjoint(self._synsets_of(other)) else ())

    def _stem(self, word: str) -> str:
        if word not in self._stems:
            self._stems[word] = stem(word)
        return self._stems[word]

    def _synsets_of(self, word: str) -> frozenset[str]:
        if word not in self._synsets:
            table = self._tables.synsets
            found = set(table.get(word, "").split())
            for base in self._bases(word):
                found.update(table.get(base, "").split())
            self._synsets[word] = frozenset(found)
        return self._synsets[word]

    def _bases(self, word: str) -> list[str]:
        if word in self._tables.exceptions:
            return self._tables.exceptions[word]
        if len(word) > 2 and not word.endswith("ss"):
            for suffix, replacement in DETACHMENTS:
                if word.endswith(suffix) and word[: len(word) - len(suffix)] + replacement in self._tables.synsets:
                    return [word[: len(word) - len(suffix)] + replacement]
        return []

    def _paraphrases(self, candidate: Sentence, reference: Sentence) -> list[Match]:
        """First the pairs listed from reference to candidate, then those from candidate to reference, each phrase's in table order."""
        found = []
        for j, other_words, other in reference.phrases:
            for position in self._listed(other, candidate.positions):
                for i, words, _ in (candidate.phrases[place] for place in candidate.positions[position]):
                    found.append(Match(3, j, other_words, i, words))
        for i, words, position in candidate.phrases:
            for other in self._listed(position, reference.positions):
                for j, other_words, _ in (reference.phrases[place] for place in reference.positions[other]):
                    found.append(Match(3, j, other_words, i, words))
        return found

    def _listed(self, position: int, wanted: dict[int, list[int]]) -> list[int]:
        """Those partners of a phrase that are wanted, in the order of the table, as often as it lists them."""
        if position not in self._partners:
            self._partners[position] = frozenset(self._listing(position))
        hits = self._partners[position].intersection(wanted)
        return [partner for partner in self._listing(position) if partner in hits] if hits else []

    def _listing(self, position: int) -> list[int]:
        start, end = self._tables.starts[position], self._tables.starts[position + 1]
        return self._tables.partners[start:end].tolist()


def _rank(path: _Path) -> tuple[int, int, int]:
    return -path.covered, path.chunks, path.distance


def _closed(path: _Path) -> _Path:
    return path if path.next_candidate < 0 else path._replace(chunks=path.chunks + 1, next_candidate=-1)


def _untouched(matches: list[list[Match]], candidate_words: int, reference_words: int) -> dict[int, Match]:
    """Matches whose words no other match touches, by reference position."""
    in_candidate, in_reference = [0] * candidate_words, [0] * reference_words
    for options in matches:
        for _, j, other_words, i, words in options:
            for x in range(j, j + other_words):
                in_reference[x] += 1
            for x in range(i, i + words):
                in_candidate[x] += 1
    alone = {}
    for options in matches:
        for match in options:
            _, j, other_words, i, words = match
            if max(in_reference[j : j + other_words]) == 1 and max(in_candidate[i : i + words]) == 1:
                alone[j] = match
    return alone


def _extended(path: _Path, match: Match, distance: int) -> _Path:
    module, j, other_words, i, words = match
    if module == 0:
        covered = path.covered + 2
    else:  # int(int(covered + words / 2) + other_words / 2) of the released program, in integers
        covered = path.covered + other_words // 2 + words // 2
    goes_on = path.next_candidate < 0 or path.next_candidate == i
    used = path.used | ((1 << words) - 1) << i
    return _Path(covered, path.chunks + (not goes_on), distance, used, j + other_words, i + words, (*path.matches, match))


def _step(paths: list[_Path], j: int, certain: Match | None, options: list[Match]) -> list[_Path]:
    """Extend every path at reference word j; with a certain match, by that one only."""
    found = []
    for path in paths:
        if path.next_reference > j:
            found.append(path)
        elif certain is not None:
            found.append(_extended(path, certain, path.distance))
        else:
            distance, used = path.distance, path.used
            for match in options:
                if not used & ((1 << match.candidate_words) - 1) << match.candidate:
                    found.append(_extended(path, match, distance))
                    distance += abs(match.candidate - j)
            if options or path.next_candidate >= 0:
                chunks = path.chunks + (path.next_candidate >= 0)
                path = _Path(path.covered, chunks, distance, used, path.next_reference, -1, path.matches)
            found.append(path)
    if len(found) > 1:
        found.sort(key=_rank)
    return found[:BEAM]
