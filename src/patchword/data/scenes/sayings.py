"""Statements about a scene, and whether they are true.

`describe` writes this grammar and `parse` reads it:

    caption  = [opener] clause ("and" clause)* ["on a" ground "background"]
    clause   = phrase [relation phrase]
    phrase   = (a | an | no | one … six) [size] [colour] noun          noun = a shape, or thing
    opener   = there is | there are | a picture of | i can see

"a red ring" is true of one or more, "two red rings" of exactly two, "no ring" of none.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple

from patchword.data.scenes.world import BACKGROUNDS, COLOURS, RELATIONS, SHAPES, SIZES, Scene, Thing, related

NUMBERS = ("no", "one", "two", "three", "four", "five", "six")
OPENERS = ("there is", "there are", "a picture of", "i can see")

# Synonyms; the first spelling is the name used everywhere else.
SHAPE_WORDS = {"circle": ("circle", "disc"), "half": ("half", "dome"), "cross": ("cross", "plus")}
COLOUR_WORDS = {"red": ("red", "crimson"), "purple": ("purple", "violet"), "cyan": ("cyan", "turquoise")}
SIZE_WORDS = {"small": ("small", "little"), "large": ("large", "big"), "medium": ("medium",)}
RELATION_WORDS = {
    "left of": ("left of", "to the left of"),
    "right of": ("right of", "to the right of"),
    "above": ("above", "over"),
    "below": ("below", "under"),
    "overlapping": ("overlapping", "touching"),
    "the same colour as": ("the same colour as", "the same color as"),
}
_PLURALS = {"cross": "crosses", "half": "halves", "plus": "pluses"}


class Phrase(NamedTuple):
    """Describes things; None means any.

    `number` None means at least one, 0 none, and any other number exactly that many.
    """

    number: int | None = None
    size: str | None = None
    colour: str | None = None
    shape: str | None = None


class ExistenceStatement(NamedTuple):
    """States that things of the phrase exist."""

    phrase: Phrase


class RelationStatement(NamedTuple):
    """States that a thing of the one phrase is in the relation to a thing of the other."""

    subject: Phrase
    relation: str
    other: Phrase


class BackgroundStatement(NamedTuple):
    """States the background."""

    background: str


Fact = ExistenceStatement | RelationStatement | BackgroundStatement


def matching(scene: Scene, phrase: Phrase) -> list[int]:
    """Returns the positions of the things that a phrase fits, whatever its number."""
    return [place for place, thing in enumerate(scene.things) if fits(thing, phrase)]


def fits(thing: Thing, phrase: Phrase) -> bool:
    """True where the thing has the phrase's size, colour and shape."""
    return (
        phrase.size in (None, thing.size)
        and phrase.colour in (None, thing.colour)
        and phrase.shape in (None, thing.shape)
    )


def is_true(scene: Scene, fact: Fact) -> bool:
    """True where the fact holds in the scene."""
    if isinstance(fact, BackgroundStatement):
        return scene.background == fact.background
    if isinstance(fact, ExistenceStatement):
        found = len(matching(scene, fact.phrase))
        return found >= 1 if fact.phrase.number is None else found == fact.phrase.number
    subjects, others = matching(scene, fact.subject), matching(scene, fact.other)
    return any(
        related(fact.relation, scene.things[i], scene.things[j]) for i in subjects for j in others if i != j
    )


def entails(scene: Scene, caption: str) -> bool:
    """The oracle: true where everything that the caption states holds in the scene.

    It is False for captions outside the grammar. With it, a search result is correct when the picture
    satisfies the words, not only when it is the one they were written for.
    """
    facts = parse(caption)
    return facts is not None and all(is_true(scene, fact) for fact in facts)


def parse(caption: str) -> tuple[Fact, ...] | None:
    """Returns the facts that a caption states; None where it is not in the grammar."""
    words = caption.lower().replace(",", " ").strip(" .").split()
    for opener in OPENERS:
        if words[: len(opener.split())] == opener.split():
            words = words[len(opener.split()) :]
            break
    facts: list[Fact] = []
    if len(words) >= 4 and words[-4:-2] == ["on", "a"] and words[-1] == "background":
        if words[-2] not in BACKGROUNDS:
            return None
        ground, words = BackgroundStatement(words[-2]), words[:-4]
        if not words:
            return (ground,)
        facts.append(ground)
    clauses = _split(words, "and")
    for clause in clauses:
        fact = _parse_clause(clause)
        if fact is None:
            return None
        facts.append(fact)
    return tuple(facts)


def _split(words: list[str], separator: str) -> list[list[str]]:
    parts: list[list[str]] = [[]]
    for word in words:
        if word == separator:
            parts.append([])
        else:
            parts[-1].append(word)
    return parts


def _parse_clause(words: list[str]) -> Fact | None:
    for name in RELATIONS:
        # Longer spellings come first, because "left of" is part of "to the left of".
        for spelling in sorted(RELATION_WORDS.get(name, (name,)), key=len, reverse=True):
            pattern = spelling.split()
            for at in range(1, len(words) - len(pattern)):
                if words[at : at + len(pattern)] == pattern:
                    subject, other = parse_phrase(words[:at]), parse_phrase(words[at + len(pattern) :])
                    if not subject or not other or {subject.number, other.number} - {None, 1}:
                        return None
                    return RelationStatement(subject._replace(number=None), name, other._replace(number=None))
    phrase = parse_phrase(words)
    return ExistenceStatement(phrase) if phrase else None


def parse_phrase(words: list[str]) -> Phrase | None:
    """Parses a phrase such as "two small red rings"; None where it is none."""
    if len(words) < 2 or (words[0] not in ("a", "an") and words[0] not in NUMBERS):
        return None
    number = NUMBERS.index(words[0]) if words[0] in NUMBERS else None
    rest = words[1:]
    size, rest = _taken(rest, _SIZE_NAMES)
    colour, rest = _taken(rest, _COLOUR_NAMES)
    if len(rest) != 1 or rest[0] not in _SHAPE_NAMES:
        return None
    shape, is_plural = _SHAPE_NAMES[rest[0]]
    if is_plural != (number is not None and number > 1):
        return None
    return Phrase(number, size, colour, shape)


def _taken(words: list[str], names: dict[str, str]) -> tuple[str | None, list[str]]:
    return (names[words[0]], words[1:]) if words and words[0] in names else (None, words)


def plural(noun: str) -> str:
    """Returns the plural of a noun of this grammar."""
    return _PLURALS.get(noun, f"{noun}s")


def _names(every: tuple[str, ...], words: Mapping[str, tuple[str, ...]]) -> dict[str, str]:
    return {spelling: name for name in every for spelling in words.get(name, (name,))}


_SIZE_NAMES = _names(SIZES, SIZE_WORDS)
_COLOUR_NAMES = _names(tuple(COLOURS), COLOUR_WORDS)
_SHAPE_NAMES: dict[str, tuple[str | None, bool]] = {"thing": (None, False), "things": (None, True)}
_SHAPE_NAMES |= {spelling: (name, False) for spelling, name in _names(SHAPES, SHAPE_WORDS).items()}
_SHAPE_NAMES |= {plural(spelling): (name, True) for spelling, name in _names(SHAPES, SHAPE_WORDS).items()}
