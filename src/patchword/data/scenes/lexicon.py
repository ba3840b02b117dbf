"""A drawn lexicon: made-up nouns whose meaning and looks are known, their pictures, and a text about them.

Each noun has a taxon, which decides the verbs beside it in the text, and a colour, a shape and a size, which
decide how it looks. The two are drawn apart, so what a noun looks like cannot be told from its taxon. Visual
adjectives stand beside a noun with a probability of one's choice: where they are rare, the text hardly says
what a noun looks like. Abstract nouns have topics and no pictures.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from patchword.data.scenes.draw import draw
from patchword.data.scenes.world import COLOURS, SHAPES, SIZES, Scene, Thing

TAXA, TOPICS = 8, 4
VERBS_PER_TAXON = 4
_RADII = (0.19, 0.28, 0.40)
_JITTER = 0.04
"""How far a thing lies from the middle of its picture at most: an exemplar shows little else than the
thing."""
_GROUNDS = ("white", "grey", "black")
_ONSETS, _VOWELS, _CODAS = "bdfgklmnprstvz", "aeiou", ("", "n", "k", "s", "l", "m")


class Noun(NamedTuple):
    """A made-up word and what it stands for."""

    word: str
    taxon: int
    colour: str
    shape: str
    size: str


@dataclass(frozen=True)
class Lexicon:
    """Nouns, and the other words of their text."""

    nouns: tuple[Noun, ...]
    verbs: tuple[tuple[str, ...], ...]
    """By taxon."""
    abstract: tuple[tuple[str, int], ...]
    """Words without looks, each with its topic."""
    seed: int

    def semantic(self) -> np.ndarray:
        """1 where two nouns are of one taxon, else 0 (n, n)."""
        taxa_N = np.array([noun.taxon for noun in self.nouns])
        return (taxa_N[:, None] == taxa_N).astype(float)

    def visual(self) -> np.ndarray:
        """The share of colour, shape and size that two nouns have in common (n, n)."""
        looks_N3 = np.array([noun[2:] for noun in self.nouns])
        return (looks_N3[:, None] == looks_N3).mean(-1)

    def mixed(self) -> np.ndarray:
        """The mean of both (n, n)."""
        return (self.semantic() + self.visual()) / 2

    def exemplars(self, count: int = 20, size: int = 16) -> np.ndarray:
        """Pictures of each noun, uint8 (n, count, size, size, 3), on grounds and at places that differ."""
        random = np.random.default_rng([self.seed, 1])
        scenes = []
        for number, noun in enumerate(self.nouns):
            for one in range(count):
                x, y = 0.5 + random.uniform(-_JITTER, _JITTER, 2)
                radius = _RADII[SIZES.index(noun.size)]
                thing = Thing(noun.shape, noun.colour, noun.size, float(x), float(y), radius, 0.0)
                ground = _GROUNDS[
                    one % len(_GROUNDS)
                ]  # in turn: the mean of a noun does not tell its grounds
                index = number * count + one
                scenes.append(Scene((thing,), ground, 1, "train", index, self.seed))
        return draw(scenes, size).reshape(len(self.nouns), count, size, size, 3)

    def sentences(self, count: int, adjectives: float = 0.05) -> Iterator[str]:
        """A text of so many sentences; a noun has a visual adjective before it with this probability."""
        random = np.random.default_rng([self.seed, 2])
        by_taxon = [[noun for noun in self.nouns if noun.taxon == taxon] for taxon in range(TAXA)]
        by_topic = [[word for word, topic in self.abstract if topic == one] for one in range(TOPICS)]
        for _ in range(count):
            if random.random() < 0.15:
                topic = by_topic[random.integers(TOPICS)]
                yield f"the {topic[random.integers(len(topic))]} of {topic[random.integers(len(topic))]}"
                continue
            taxon = int(random.integers(TAXA))
            mine = by_taxon[taxon]
            first, second = (_said(mine[random.integers(len(mine))], adjectives, random) for _ in range(2))
            yield f"the {first} {self.verbs[taxon][random.integers(VERBS_PER_TAXON)]} near the {second}"


def _said(noun: Noun, adjectives: float, random: np.random.Generator) -> str:
    if random.random() >= adjectives:
        return noun.word
    return f"{(noun.colour, noun.shape, noun.size)[random.integers(3)]} {noun.word}"


def lexicon(nouns: int = 80, seed: int = 0, abstract: int = 16) -> Lexicon:
    """A lexicon; taxa and looks are drawn apart, taxa in equal numbers."""
    random = np.random.default_rng([seed, 0])
    words = _words(nouns + TAXA * VERBS_PER_TAXON + abstract, random)
    taxa = random.permutation(np.arange(nouns) % TAXA)
    colours = tuple(COLOURS)
    made = tuple(
        Noun(
            next(words),
            int(taxon),
            colours[random.integers(len(colours))],
            SHAPES[random.integers(len(SHAPES))],
            SIZES[random.integers(len(SIZES))],
        )
        for taxon in taxa
    )
    verbs = tuple(tuple(f"{next(words)}s" for _ in range(VERBS_PER_TAXON)) for _ in range(TAXA))
    return Lexicon(made, verbs, tuple((next(words), number % TOPICS) for number in range(abstract)), seed)


def _words(count: int, random: np.random.Generator) -> Iterator[str]:
    """Different made-up words of two syllables."""
    found: dict[str, None] = {}
    while len(found) < count:
        syllables = [
            _ONSETS[random.integers(len(_ONSETS))]
            + _VOWELS[random.integers(len(_VOWELS))]
            + _CODAS[random.integers(len(_CODAS))]
            for _ in range(2)
        ]
        found["".join(syllables)] = None
    return iter(found)
