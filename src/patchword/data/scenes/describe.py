"""Captions of a scene, true by construction, in which every word is linked to the things it describes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from patchword.data.scenes import sayings
from patchword.data.scenes.sayings import (
    BackgroundStatement,
    ExistenceStatement,
    Fact,
    Phrase,
    RelationStatement,
)
from patchword.data.scenes.world import PURPOSES, SHAPES, Scene, related, relations


class Style(NamedTuple):
    """The wording of a caption, independent of its content."""

    opener: str = ""
    synonyms: bool = False
    drop_adjectives: bool = False
    ground: bool = False
    negation: bool = False


STYLES = (
    Style(),
    Style(opener="there is"),
    Style(opener="a picture of", ground=True),
    Style(synonyms=True),
    Style(opener="i can see", drop_adjectives=True),
    Style(negation=True, drop_adjectives=True),
)
"""The paraphrases; the first is the plainest."""


@dataclass(frozen=True)
class Caption:
    """A true sentence about a scene."""

    words: tuple[str, ...]
    links: tuple[tuple[int, ...], ...]
    """For each word, the positions of the things it describes; empty for words that describe none."""
    facts: tuple[Fact, ...]
    style: int
    """Number in `STYLES`, for those who want to recognise the wording from the caption."""

    @property
    def text(self) -> str:
        """The caption as one string."""
        return " ".join(self.words)


def describe(scene: Scene, count: int = 5, styles: Sequence[int] = (0, 1, 2, 3, 4, 5)) -> list[Caption]:
    """Returns `count` captions, in the given styles in turn.

    The same scene always gives the same captions.
    """
    rng = scene.generator(PURPOSES["captions"])
    return [_caption(scene, styles[number % len(styles)], rng) for number in range(count)]


def _caption(scene: Scene, style_number: int, rng: np.random.Generator) -> Caption:
    style = STYLES[style_number]
    facts = _main_facts(scene, style, rng)
    words: list[str] = []
    links: list[tuple[int, ...]] = []

    def add(text: str, things: Sequence[int] = ()) -> None:
        for word in text.split():
            words.append(word)
            links.append(tuple(things))

    if style.opener:
        counted = isinstance(facts[0], ExistenceStatement) and (facts[0].phrase.number or 0) > 1
        add("there are" if style.opener == "there is" and counted else style.opener)
    for number, fact in enumerate(facts):
        if number:
            add("and")
        if isinstance(fact, RelationStatement):
            pairs = _pairs(scene, fact)
            subjects, others = sorted({i for i, _ in pairs}), sorted({j for _, j in pairs})
            add(_phrase_words(fact.subject, style, rng), subjects)
            add(_spelling(fact.relation, sayings.RELATION_WORDS, style, rng), sorted({*subjects, *others}))
            add(_phrase_words(fact.other, style, rng), others)
        else:
            add(_phrase_words(fact.phrase, style, rng), sayings.matching(scene, fact.phrase))
    if style.ground:
        add(f"on a {scene.background} background")
        return Caption(
            tuple(words), tuple(links), (*facts, BackgroundStatement(scene.background)), style_number
        )
    return Caption(tuple(words), tuple(links), facts, style_number)


def _pairs(scene: Scene, fact: RelationStatement) -> list[tuple[int, int]]:
    subjects, others = sayings.matching(scene, fact.subject), sayings.matching(scene, fact.other)
    return [
        (i, j)
        for i in subjects
        for j in others
        if i != j and related(fact.relation, scene.things[i], scene.things[j])
    ]


def _main_facts(
    scene: Scene, style: Style, rng: np.random.Generator
) -> tuple[ExistenceStatement | RelationStatement, ...]:
    """Chooses what a caption says.

    This is one thing (level 1), a relation or both things (level 2), or counts and a relation (level 3).
    """
    if style.negation and rng.random() < 0.7:
        absent = [shape for shape in SHAPES if all(thing.shape != shape for thing in scene.things)]
        denied = ExistenceStatement(Phrase(number=0, shape=absent[rng.integers(len(absent))]))
        return (_count_fact(scene, int(rng.integers(len(scene.things))), style, rng), denied)
    graph = relations(scene)
    if graph and rng.random() < 0.75:
        i, name, j = graph[rng.integers(len(graph))]
        # "the red ring is the same colour as the red star" would reveal the answer.
        blind = name == "the same colour as"
        return (
            RelationStatement(
                _phrase(scene, i, style, rng, blind), name, _phrase(scene, j, style, rng, blind)
            ),
        )
    first = int(rng.integers(len(scene.things)))
    facts = [_count_fact(scene, first, style, rng)]
    others = [
        place for place in range(len(scene.things)) if not sayings.fits(scene.things[place], facts[0].phrase)
    ]
    if others:
        facts.append(_count_fact(scene, others[rng.integers(len(others))], style, rng))
    return tuple(facts)


def _phrase(
    scene: Scene, place: int, style: Style, rng: np.random.Generator, no_colour: bool = False
) -> Phrase:
    thing = scene.things[place]
    keep = 0.5 if style.drop_adjectives else 0.9
    size = thing.size if rng.random() < keep * 0.5 else None
    colour = thing.colour if rng.random() < keep and not no_colour else None
    shape = thing.shape if colour is None or rng.random() < 0.95 else None
    return Phrase(None, size, colour, shape)


def _count_fact(scene: Scene, place: int, style: Style, rng: np.random.Generator) -> ExistenceStatement:
    phrase = _phrase(scene, place, style, rng)
    found = len(sayings.matching(scene, phrase))
    return ExistenceStatement(phrase._replace(number=found) if found > 1 or rng.random() < 0.1 else phrase)


def _phrase_words(phrase: Phrase, style: Style, rng: np.random.Generator) -> str:
    noun = "thing" if phrase.shape is None else _spelling(phrase.shape, sayings.SHAPE_WORDS, style, rng)
    words = [sayings.plural(noun) if (phrase.number or 0) > 1 else noun]
    if phrase.colour is not None:
        words.insert(0, _spelling(phrase.colour, sayings.COLOUR_WORDS, style, rng))
    if phrase.size is not None:
        words.insert(0, _spelling(phrase.size, sayings.SIZE_WORDS, style, rng))
    article = "an" if words[0][0] in "aeiou" else "a"
    return " ".join([article if phrase.number is None else sayings.NUMBERS[phrase.number], *words])


def _spelling(name: str, words: Mapping[str, tuple[str, ...]], style: Style, rng: np.random.Generator) -> str:
    spellings = words.get(name, (name,))
    return spellings[rng.integers(len(spellings))] if style.synonyms else spellings[0]


def distinct(scenes: Sequence[Scene], captions: Sequence[str]) -> list[int]:
    """Selects pairs in which no caption is true of another pair's scene, greedily from the front.

    Returns their positions. A contrastive batch of these pairs has no false negatives.
    """
    kept: list[int] = []
    facts = [sayings.parse(caption) for caption in captions]

    def tells(caption: int, scene: int) -> bool:
        told = facts[caption]
        return told is not None and all(sayings.is_true(scenes[scene], fact) for fact in told)

    for place in range(len(scenes)):
        if not any(tells(place, other) or tells(other, place) for other in kept):
            kept.append(place)
    return kept
