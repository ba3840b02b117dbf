"""Questions about a scene with known answers, chosen so that the question alone hardly helps to guess them.

For each question, the answer is drawn first and then a question that has it: yes and no are equally frequent,
and numbers are spread evenly.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Literal, NamedTuple

import numpy as np

from patchword.data.question_only import CommonestAnswer
from patchword.data.scenes import sayings
from patchword.data.scenes.sayings import NUMBERS, Phrase
from patchword.data.scenes.world import COLOURS, PURPOSES, SHAPES, SIZES, Scene, related

Kind = Literal["exist", "count", "colour", "shape", "size", "relation", "compare"]
KINDS: tuple[Kind, ...] = ("exist", "count", "colour", "shape", "size", "relation", "compare")
_DIRECTIONS = ("left of", "right of", "above", "below")


class Program(NamedTuple):
    """The content of a question, from which `answer` computes its answer."""

    kind: Kind
    first: Phrase
    relation: str = ""
    """The relation that a question is about; empty for other kinds."""
    second: Phrase = Phrase()
    """The other things of a comparison or a relation."""


class Question(NamedTuple):
    """A question with its only correct answer."""

    text: str
    answer: str
    program: Program

    @property
    def kind(self) -> Kind:
        """The kind of question."""
        return self.program.kind


def answer(scene: Scene, program: Program) -> str | None:
    """Returns the answer in a scene, or None where the question has no answer there.

    An example is the colour of something that occurs twice or not at all.
    """
    found = sayings.matching(scene, program.first)
    if program.kind == "exist":
        return "yes" if found else "no"
    if program.kind == "count":
        return _number(len(found))
    if program.kind == "compare":
        return "yes" if len(found) > len(sayings.matching(scene, program.second)) else "no"
    if len(found) != 1:
        return None
    if program.kind != "relation":
        return getattr(scene.things[found[0]], program.kind)
    others = sayings.matching(scene, program.second)
    if len(others) != 1 or others == found:
        return None
    return "yes" if related(program.relation, scene.things[found[0]], scene.things[others[0]]) else "no"


def ask(scene: Scene, count: int = 4, kinds: tuple[Kind, ...] = KINDS) -> list[Question]:
    """Returns `count` different questions, or fewer where the scene has no more.

    Kinds are drawn evenly from `kinds`, as far as the scene allows. The same scene always gives the same
    questions.
    """
    rng = scene.generator(PURPOSES["questions"])
    asked: dict[str, Question] = {}
    for _ in range(30 * count):
        program = _PROPOSALS[kinds[rng.integers(len(kinds))]](scene, rng)
        known = answer(scene, program) if program else None
        if known is not None:
            question = Question(_worded(program), known, program)
            asked.setdefault(question.text, question)
        if len(asked) == count:
            break
    return list(asked.values())


def question_only_baseline(training: Iterable[Question], held_out: Iterable[Question]) -> float:
    """Returns the accuracy on the held-out questions of guessing without the pictures.

    The guess is the most frequent training answer to the same words, or else to the same kind. What a model
    scores above this comes from the pictures.
    """
    guess = CommonestAnswer((question.text, question.kind, question.answer) for question in training)
    held_out = list(held_out)
    return sum(guess.answer(question.text, question.kind) == question.answer for question in held_out) / len(
        held_out
    )


def _number(count: int) -> str:
    return "zero" if count == 0 else NUMBERS[count]


def _any_phrase(rng: np.random.Generator, scene: Scene) -> Phrase:
    """Draws a colour, a shape or both, close to what is there, so that "no" depends on the picture."""
    thing = scene.things[rng.integers(len(scene.things))]
    colour = thing.colour if rng.random() < 0.5 else tuple(COLOURS)[rng.integers(len(COLOURS))]
    shape = thing.shape if rng.random() < 0.5 else SHAPES[rng.integers(len(SHAPES))]
    return (
        Phrase(None, None, colour, None),
        Phrase(None, None, None, shape),
        Phrase(None, None, colour, shape),
    )[rng.integers(3)]


def _with_answer(scene: Scene, kind: Kind, wanted: str, rng: np.random.Generator) -> Program | None:
    """Returns a question that has the wanted answer, if one is found in 30 attempts."""
    for _ in range(30):
        second = _any_phrase(rng, scene) if kind == "compare" else Phrase()
        program = Program(kind, _any_phrase(rng, scene), second=second)
        if (kind != "compare" or program.first != second) and answer(scene, program) == wanted:
            return program
    return None


def _exist(scene: Scene, rng: np.random.Generator) -> Program | None:
    return _with_answer(scene, "exist", ("yes", "no")[rng.integers(2)], rng)


def _count(scene: Scene, rng: np.random.Generator) -> Program | None:
    """Each number that some phrase gives in this scene is equally likely."""
    programs = [Program("count", _any_phrase(rng, scene)) for _ in range(12)]
    wanted = sorted({str(answer(scene, program)) for program in programs})
    chosen = wanted[rng.integers(len(wanted))]
    return next(program for program in programs if answer(scene, program) == chosen)


def _compare(scene: Scene, rng: np.random.Generator) -> Program | None:
    return _with_answer(scene, "compare", ("yes", "no")[rng.integers(2)], rng)


def _attribute(kind: Kind):
    """Asks for one attribute of a thing that its other attributes identify."""

    def propose(scene: Scene, rng: np.random.Generator) -> Program | None:
        thing = scene.things[rng.integers(len(scene.things))]
        known = {
            name: getattr(thing, name)
            for name in ("size", "colour", "shape")
            if name != kind and rng.random() < 0.7
        }
        return Program(kind, Phrase(**known)) if known or len(scene.things) == 1 else None

    return propose


def _relation(scene: Scene, rng: np.random.Generator) -> Program | None:
    if len(scene.things) < 2:
        return None
    i, j = rng.choice(len(scene.things), 2, replace=False)
    first, second = (
        Phrase(None, None, scene.things[place].colour, scene.things[place].shape) for place in (i, j)
    )
    wanted = ("yes", "no")[rng.integers(2)]
    programs = [Program("relation", first, name, second) for name in _DIRECTIONS]
    programs = [program for program in programs if answer(scene, program) == wanted]
    return programs[rng.integers(len(programs))] if programs else None


_PROPOSALS = {
    "exist": _exist,
    "count": _count,
    "colour": _attribute("colour"),
    "shape": _attribute("shape"),
    "size": _attribute("size"),
    "relation": _relation,
    "compare": _compare,
}


def _worded(program: Program) -> str:
    first = _noun(program.first)
    if program.kind == "exist":
        return f"is there {'an' if first[0] in 'aeiou' else 'a'} {first}?"
    if program.kind == "count":
        return f"how many {_noun(program.first, many=True)} are there?"
    if program.kind == "compare":
        return f"are there more {_noun(program.first, many=True)} than {_noun(program.second, many=True)}?"
    if program.kind == "relation":
        return f"is the {first} {program.relation} the {_noun(program.second)}?"
    return f"what {program.kind} is the {first}?"


def _noun(phrase: Phrase, many: bool = False) -> str:
    noun = phrase.shape or "thing"
    words = [phrase.size, phrase.colour, sayings.plural(noun) if many else noun]
    return " ".join(word for word in words if word)


ANSWERS = ("yes", "no", *(_number(count) for count in range(7)), *COLOURS, *SHAPES, *SIZES)
"""All possible answers."""
