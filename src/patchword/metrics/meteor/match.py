"""METEOR's matches between two sentences (Denkowski and Lavie 2014, section 3), before any is chosen.

Four modules propose them: 0 the same word, 1 the same stem, 2 a common WordNet synonym set, 3 a pair of the
paraphrase table. A pair listed in both directions of the table counts as two matches, as in the released
program.

Facts about a word are looked up once. The phrases of many sentences are looked up together, and of the
paraphrase table only the pairs are read whose phrases both occur in these sentences.

Shape legend: W words of all sentences in sequence, F phrases found in them, U different ones among these, L
pairs listed for them, P phrases of the table.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import accumulate, chain
from typing import NamedTuple

import numpy as np

from patchword.metrics.meteor.align import Match
from patchword.metrics.meteor.stem import stem
from patchword.metrics.meteor.tables import LONGEST_PHRASE, POWERS, Tables, word_hash

# WordNet's rules of detachment, in this order; only the first base that is a lemma is used.
DETACHMENTS = (
    ("s", ""), ("ses", "s"), ("xes", "x"), ("zes", "z"), ("ches", "ch"), ("shes", "sh"), ("men", "man"),
    ("ies", "y"),
    ("es", "e"), ("es", ""), ("ed", "e"), ("ed", ""), ("ing", "e"), ("ing", ""), ("er", ""), ("est", ""),
    ("er", "e"), ("est", "e"),
)  # fmt: skip
_NONE: frozenset[int] = frozenset()


class Word(NamedTuple):
    """What METEOR knows about a word."""

    hash: int
    stem: str
    synsets: frozenset[str]
    function: bool


class Sentence(NamedTuple):
    """A sentence with those of its phrases that can match anything."""

    words: list[str]
    functions: list[int]
    """Number of function words before each position; one position more than words."""
    phrases: list[tuple[int, int, int]]
    """(start, words, position in the table)."""


class Paraphrases(NamedTuple):
    """The part of the paraphrase table that some sentences use; phrases are positions in the table."""

    lists: dict[int, list[int]]
    """Phrase -> its partners in the order of the table, as often as it lists them."""
    listed_by: dict[int, set[int]]
    """Phrase -> phrases that list it."""


class Words:
    """Looks up words, each once."""

    def __init__(self, tables: Tables) -> None:
        self._tables = tables
        self._known: dict[str, Word] = {}

    def __getitem__(self, word: str) -> Word:
        known = self._known.get(word)
        if known is None:
            known = self._known[word] = Word(
                word_hash(word), stem(word), self._synsets(word), word in self._tables.function_words
            )
        return known

    def _synsets(self, word: str) -> frozenset[str]:
        table = self._tables.synsets
        found = set(table.get(word, "").split())
        for base in self._bases(word):
            found.update(table.get(base, "").split())
        return frozenset(found)

    def _bases(self, word: str) -> list[str]:
        if word in self._tables.exceptions:
            return self._tables.exceptions[word]
        if len(word) > 2 and not word.endswith("ss"):
            for suffix, replacement in DETACHMENTS:
                if (
                    word.endswith(suffix)
                    and word[: len(word) - len(suffix)] + replacement in self._tables.synsets
                ):
                    return [word[: len(word) - len(suffix)] + replacement]
        return []


def prepare(
    sentences: Sequence[list[str]], words: Words, tables: Tables
) -> tuple[list[Sentence], Paraphrases]:
    """Looks up the phrases of all sentences together, and the paraphrases between them."""
    places_F, lengths_F, positions_F, sentence_F = _phrases(sentences, words, tables.phrases_P)
    owners_L, partners_L = _pairs(np.unique(positions_F), tables)
    lists: dict[int, list[int]] = {}
    listed_by: dict[int, set[int]] = {}
    for owner, partner in zip(owners_L.tolist(), partners_L.tolist(), strict=True):
        lists.setdefault(owner, []).append(partner)
        listed_by.setdefault(partner, set()).add(owner)
    found: list[list[tuple[int, int, int]]] = [[] for _ in sentences]
    paired = np.isin(positions_F, np.concatenate((owners_L, partners_L)))
    columns = (column[paired].tolist() for column in (sentence_F, places_F, lengths_F, positions_F))
    for sentence, place, length, position in zip(*columns, strict=True):
        found[sentence].append((place, length, position))
    function = {word: words[word].function for word in set(chain.from_iterable(sentences))}
    return [
        Sentence(text, list(accumulate((function[word] for word in text), initial=0)), phrases)
        for text, phrases in zip(sentences, found, strict=True)
    ], Paraphrases(lists, listed_by)


def _phrases(sentences: Sequence[list[str]], words: Words, phrases_P: np.ndarray) -> tuple[np.ndarray, ...]:
    """Returns first word, number of words, position in the table and sentence of every listed phrase.

    They are in the order of the sentences.
    """
    lengths = np.array([len(text) for text in sentences], dtype=np.int64)
    ends = np.cumsum(lengths)
    ends_W = np.repeat(ends, lengths)
    all_words = list(chain.from_iterable(sentences))
    hashed = {word: words[word].hash for word in set(all_words)}
    hashes_W = np.array([hashed[word] for word in all_words], dtype=np.uint64)
    totals_W = np.zeros(len(hashes_W), dtype=np.uint64)
    found = []
    for length in range(1, LONGEST_PHRASE + 1):
        starts_W = np.arange(max(len(hashes_W) - length + 1, 0))
        totals_W = totals_W[: len(starts_W)] + hashes_W[length - 1 :] * np.uint64(POWERS[length - 1])
        starts_W = starts_W[starts_W + length <= ends_W[: len(starts_W)]]
        keys, back = np.unique(totals_W[starts_W], return_inverse=True)
        positions = np.minimum(np.searchsorted(phrases_P, keys), len(phrases_P) - 1)
        listed = (phrases_P[positions] == keys)[back]
        found.append((starts_W[listed], np.full(np.count_nonzero(listed), length), positions[back][listed]))
    starts_F, lengths_F, positions_F = (np.concatenate(column) for column in zip(*found, strict=True))
    order_F = np.lexsort((lengths_F, starts_F))
    starts_F = starts_F[order_F]
    sentence_F = np.searchsorted(ends, starts_F, side="right")
    return starts_F - (ends - lengths)[sentence_F], lengths_F[order_F], positions_F[order_F], sentence_F


def _pairs(positions_U: np.ndarray, tables: Tables) -> tuple[np.ndarray, np.ndarray]:
    """Returns both sides of every pair of the table between these phrases, in its order."""
    here_P = np.zeros(len(tables.phrases_P), dtype=bool)
    here_P[positions_U] = True
    first_U = tables.starts[positions_U]
    counts_U = tables.starts[positions_U + 1] - first_U
    places_L = np.arange(counts_U.sum()) + np.repeat(first_U - np.cumsum(counts_U) + counts_U, counts_U)
    partners_L = tables.partners[places_L]
    kept_L = here_P[partners_L]
    return np.repeat(positions_U, counts_U)[kept_L], partners_L[kept_L].astype(np.int64)


class Candidate:
    """A candidate, prepared for matching with its references."""

    def __init__(self, sentence: Sentence, words: Words, paraphrases: Paraphrases) -> None:
        self.sentence = sentence
        self._words, self._lists = words, paraphrases.lists
        known = [words[word] for word in sentence.words]
        self._all_synsets = frozenset().union(*(word.synsets for word in known))
        self._synsets = [(i, word.synsets) for i, word in enumerate(known) if word.synsets]
        self._at: dict[str, list[tuple[int, int]]] = {}
        self._stems: dict[str, list[int]] = {}
        for i, (word, facts) in enumerate(zip(sentence.words, known, strict=True)):
            self._at.setdefault(word, []).append((0, i))
            self._stems.setdefault(facts.stem, []).append(i)
        self._options: dict[str, list[tuple[int, int]]] = {}
        self._places: dict[int, list[tuple[int, int]]] = {}
        for i, length, position in sentence.phrases:
            self._places.setdefault(position, []).append((i, length))
        self._lists_us = set().union(
            *(paraphrases.listed_by.get(position, _NONE) for position in self._places)
        )
        self._listed = set().union(*(paraphrases.lists.get(position, ()) for position in self._places))

    def matches(self, reference: Sentence) -> list[list[Match]]:
        """Returns all matches, by the position of their first reference word.

        Those of one position are in the order in which they are to be tried.
        """
        found = []
        for j, other in enumerate(reference.words):
            options = self._options.get(other)
            if options is None:
                options = self._options[other] = self._word_options(other)
            found.append([(module, j, 1, i, 1) for module, i in options] if options else [])
        if self._places:
            self._add_paraphrases(reference, found)
        return found

    def _word_options(self, other: str) -> list[tuple[int, int]]:
        """Returns (module, candidate position) of all matches of one reference word, by module."""
        words, known = self.sentence.words, self._words[other]
        options = list(self._at.get(other, ()))
        options += [(1, i) for i in self._stems.get(known.stem, ()) if words[i] != other]
        synsets = known.synsets
        if not synsets.isdisjoint(self._all_synsets):
            options += [
                (2, i) for i, own in self._synsets if words[i] != other and not own.isdisjoint(synsets)
            ]
        return options

    def _add_paraphrases(self, reference: Sentence, found: list[list[Match]]) -> None:
        """Adds the pairs listed from reference to candidate, then those from candidate to reference.

        The pairs of each phrase are in table order.
        """
        listed = False
        for j, other_words, position in reference.phrases:
            if position in self._lists_us:
                for partner in self._lists[position]:
                    for i, words in self._places.get(partner, ()):
                        found[j].append((3, j, other_words, i, words))
            listed = listed or position in self._listed
        if listed:
            places: dict[int, list[tuple[int, int]]] = {}
            for j, other_words, position in reference.phrases:
                places.setdefault(position, []).append((j, other_words))
            for i, words, position in self.sentence.phrases:
                for partner in self._lists.get(position, ()):
                    for j, other_words in places.get(partner, ()):
                        found[j].append((3, j, other_words, i, words))
