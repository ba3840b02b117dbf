"""Makes questions about photographs from captions and boxes, and measures who answers them.

    python benchmarks/photo_questions.py make --captions D.json --split val --out questions.json
    python benchmarks/photo_questions.py make --boxes instances.json --out questions.json
    python benchmarks/photo_questions.py measure questions.json --images photos
    python benchmarks/photo_questions.py fit questions.json --images photos

Yes and no are balanced for every word: as many pictures that have it as pictures that have not, so that an
answer without the picture is right half of the time. A word is in a picture when two of its captions name it
(or a box of at least a hundredth of the picture); it is absent when none does, nor a word for the same thing.
What a picture shows is right where one of its captions names it.
"""

from __future__ import annotations

import json
import re
from collections import Counter, defaultdict
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Annotated, NamedTuple

import numpy as np
import typer

from patchword.data.formats.instances import read_instances
from patchword.data.formats.readers import read_captions, split_records
from patchword.data.records import CaptionRecord
from patchword.errors import DataError
from patchword.metrics.bootstrap import grouped_interval
from patchword.tasks.caption.doubt import forms, names
from patchword.text.coco_objects import coco_words
from patchword.text.concepts import caption_words
from patchword.text.words import PLURALS
from patchword.train.data import hold_out

app = typer.Typer(add_completion=False)
COLOURS = ("red", "orange", "yellow", "green", "blue", "purple", "pink", "brown", "black", "white", "gray")
_MOST_OF_A_WORD = 10
_LEAST_BOX = 0.01
_NOT_THINGS = frozenset(
    "air area background camera day day's day-time distance edge end event front game group head line lot "
    "middle number object one other outside outdoors pair part picture piece place play race ride row run "
    "scene set shot show side sit stand surface team top trick turn view walk way two three four five "
    "jump photo face hand hands body ground grass water snow day night".split()
)
"""Frequent words of captions whose absence from a caption says little about the picture."""


class Question(NamedTuple):
    """A question, the answers that are right, and its kind: presence, what, colour or count."""

    image: str
    question: str
    answers: list[str]
    kind: str


@app.command()
def make(
    out: Annotated[Path, typer.Option(help="JSON file of the questions.")],
    captions: Annotated[Path | None, typer.Option(help="Captions, in any format.")] = None,
    boxes: Annotated[Path | None, typer.Option(help="COCO instances JSON.")] = None,
    split: Annotated[str, typer.Option(help="Split of the captions; all for every picture.")] = "val",
    held_out: Annotated[
        int, typer.Option(help="In place of a split: as many training pictures, those of data.held_out.")
    ] = 0,
    seed: Annotated[int, typer.Option(help="Which pictures lack a word.")] = 0,
) -> None:
    """Write questions of captions, of boxes, or of both."""
    random = np.random.default_rng(seed)
    questions: list[Question] = []
    if captions is not None:
        every = read_captions(captions)
        records = every if split == "all" else split_records(every, "train" if held_out else split)
        if held_out:
            records = [records[n] for n in hold_out(len(records), held_out, "training pictures")[1]]
        questions += [*presence_by_captions(records, random), *colours(records)]
        questions += [Question(one.file, "what is it?", list(one.captions), "what") for one in records]
    if boxes is not None:
        questions += by_boxes(boxes, random)
    out.write_text(json.dumps([one._asdict() for one in questions], indent=1), encoding="utf-8")
    print(", ".join(f"{kind} {count}" for kind, count in Counter(one.kind for one in questions).items()))


def presence_by_captions(records: Sequence[CaptionRecord], random: np.random.Generator) -> list[Question]:
    """Balanced yes/no questions for the nouns that captions name often."""
    synonyms = coco_words()
    words_of = [[re.findall(r"[a-z]+", caption.lower()) for caption in record.captions] for record in records]
    nouns = list(_nouns([caption for record in records for caption in record.captions]))
    same = defaultdict(set)
    for word, category in synonyms.items():
        same[category].add(word)
    questions = []
    for noun in nouns:
        alike = {noun, f"{noun}s", f"{noun}es"} | same.get(synonyms.get(noun, ""), set())
        named = [sum(bool({noun, f"{noun}s", f"{noun}es"} & set(words)) for words in one) for one in words_of]
        absent = [not any(alike & set(words) for words in one) for one in words_of]
        yes = [number for number, count in enumerate(named) if count >= 2]
        no = [number for number, lacks in enumerate(absent) if lacks]
        questions += _balanced(yes, no, lambda n: records[n].file, _asked(noun), random)
    return questions


def _nouns(captions: Sequence[str]) -> Iterator[str]:
    """Nouns in the singular: candidates that seldom stand before another candidate, as adjectives do."""
    candidates = caption_words(captions, 20)
    known = set(candidates)
    before: Counter[str] = Counter()
    uses: Counter[str] = Counter()
    for caption in captions:
        words = re.findall(r"[a-z]+", caption.lower())
        uses.update(words)
        before.update(word for word, after in zip(words, words[1:], strict=False) if after in known)
    for word in candidates:
        plural = word in PLURALS.values() or (word.endswith("s") and not word.endswith("ss"))
        if not plural and word not in _NOT_THINGS and word not in COLOURS and before[word] < 0.3 * uses[word]:
            yield word


def _balanced(
    yes: Sequence[int],
    no: Sequence[int],
    file: object,
    question: str,
    random: np.random.Generator,
) -> list[Question]:
    count = min(len(yes), len(no), _MOST_OF_A_WORD)
    chosen = [("yes", n) for n in random.permutation(yes)[:count]] if count else []
    chosen += [("no", n) for n in random.permutation(no)[:count]] if count else []
    return [Question(file(int(n)), question, [answer], "presence") for answer, n in chosen]  # type: ignore[operator]


def _asked(noun: str) -> str:
    return f"is there {'an' if noun[0] in 'aeiou' else 'a'} {noun}?"


def colours(records: Sequence[CaptionRecord]) -> list[Question]:
    """Which colour a thing has, where two captions give it the same one and none another."""
    questions = []
    for record in records:
        said: dict[str, Counter[str]] = defaultdict(Counter)
        for caption in record.captions:
            for colour, noun in set(re.findall(r"\b([a-z]+) ([a-z]+)\b", caption.lower())):
                colour = "gray" if colour == "grey" else colour
                if colour in COLOURS and noun not in (*COLOURS, "and", "haired", "hair", "in", "is", "grey"):
                    said[noun][colour] += 1
        for noun, counts in said.items():
            (colour, count), *others = counts.most_common()
            if count >= 2 and not others:
                questions.append(Question(record.file, f"which colour is the {noun}?", [colour], "colour"))
    return questions


def by_boxes(boxes: Path, random: np.random.Generator) -> list[Question]:
    """Presence and how many, of the categories of COCO."""
    pictures = [one for one in read_instances(boxes) if one.boxes]
    questions: list[Question] = []
    shares = [
        {name: max(map(_area, found)) / (one.size[0] * one.size[1]) for name, found in one.boxes.items()}
        for one in pictures
    ]
    for name in sorted({name for one in shares for name in one}):
        yes = [n for n, one in enumerate(shares) if one.get(name, 0) >= _LEAST_BOX]
        no = [n for n, one in enumerate(shares) if name not in one]
        questions += _balanced(yes, no, lambda n: pictures[n].file, _asked(name), random)
    for one, share in zip(pictures, shares, strict=True):
        for name, found in one.boxes.items():
            if len(found) <= 6 and share[name] >= _LEAST_BOX:
                asked = f"how many {forms(name)[1]} are there?"
                questions.append(Question(one.file, asked, [str(len(found))], "count"))
    return questions


def _area(box: Sequence[float]) -> float:
    return (box[2] - box[0]) * (box[3] - box[1])


@app.command()
def measure(
    questions: Annotated[Path, typer.Argument(help="JSON file that `make` wrote.")],
    images: Annotated[Path, typer.Option(help="Folder of the pictures.")],
    model: Annotated[str, typer.Option(help="Two towers that answer about photographs.")] = "two-towers",
) -> None:
    """Print for each kind how many questions are answered rightly, and what one answer for all would give."""
    from patchword.tasks.answer.photographs import PhotographAnswerer, understood
    from patchword.tasks.retrieve.load import load_two_towers

    answerer = PhotographAnswerer(load_two_towers(model, "cpu"))
    asked = _by_picture(questions)
    right: dict[str, dict[str, list[float]]] = defaultdict(lambda: defaultdict(list))
    truth: dict[str, Counter[str]] = defaultdict(Counter)
    refused: Counter[str] = Counter()
    for image, own in asked.items():
        seen = answerer.look([images / image])
        for one in own:
            truth[one.kind][one.answers[0]] += 1
            try:
                best = answerer.answers(understood(one.question), seen, 0)[0].text
            except DataError:
                refused[one.kind] += 1
                continue
            right[one.kind][image].append(float(is_right(best, one)))
    for kind, counts in truth.items():
        total = sum(counts.values())
        always = f"one answer for all {counts.most_common(1)[0][1] / total:.1%}"
        groups = list(right[kind].values())
        if not groups:
            print(f"{kind}: all {total} refused; {always}")
            continue
        share = float(np.mean([value for group in groups for value in group]))
        low, high = grouped_interval(groups)
        said = f"{kind}: {total} questions, {refused[kind]} refused, of the others right {share:.1%}"
        print(f"{said} ({low:.1%} to {high:.1%}){'' if kind == 'what' else f'; {always}'}")


def is_right(answer: str, question: Question) -> bool:
    """Whether an answer is one of those that are right; what a picture shows, a caption must name."""
    if question.kind != "what":
        return answer in question.answers
    return any(names(caption, answer) for caption in question.answers)


@app.command()
def fit(
    questions: Annotated[Path, typer.Argument(help="JSON file that `make` wrote, of pictures held out.")],
    images: Annotated[Path, typer.Option(help="Folder of the pictures.")],
    model: Annotated[str, typer.Option(help="Two towers.")] = "two-towers",
) -> None:
    """Print the section `questions` of the towers' config.json: a logistic regression on yes/no questions."""
    from patchword.tasks.answer.photographs import PhotographAnswerer
    from patchword.tasks.retrieve.load import load_two_towers
    from patchword.tasks.retrieve.model import QuestionSettings

    towers = load_two_towers(model, "cpu")
    asked = _by_picture(questions)
    neutral = QuestionSettings(
        centre=(0.0,) * towers.settings.two_towers.width, bias=0, cosine=1, known_bias=0, known=0
    )
    towers.settings = towers.settings.model_copy(update={"questions": neutral})
    looker = PhotographAnswerer(towers)
    seen = {image: looker.look([images / image]) for image in asked}
    centre_E = np.mean([one.vectors_BE[0] for one in seen.values()], axis=0)
    rows, truth = [], []
    for image, own in asked.items():
        for one in own:
            if one.kind == "presence":
                rows.append(looker.signs(understood_thing(one), seen[image], 0, centre_E))
                truth.append(one.answers == ["yes"])
    bias, cosine, known_bias, known = logistic(np.array(rows), np.array(truth, dtype=float)).tolist()
    found = QuestionSettings(
        centre=tuple(round(float(value), 5) for value in centre_E),
        bias=bias,
        cosine=cosine,
        known_bias=known_bias,
        known=known,
    )
    print(json.dumps(found.model_dump()))


def understood_thing(question: Question) -> str:
    """What a yes/no question asks for."""
    from patchword.tasks.answer.photographs import understood

    return understood(question.question).thing


def logistic(x_PF: np.ndarray, y_P: np.ndarray, ridge: float = 1e-3) -> np.ndarray:
    """Bias and weights (1 + F) of a logistic regression, by Newton's method."""
    whole = np.concatenate([np.ones((len(x_PF), 1)), x_PF], axis=1)
    penalty = ridge * np.diag([0.0, *np.ones(x_PF.shape[1])])
    weights = np.zeros(whole.shape[1])
    for _ in range(50):
        chances = 1 / (1 + np.exp(-whole @ weights))
        slope = whole.T @ (chances - y_P) / len(y_P) + penalty @ weights
        curve = (whole * (chances * (1 - chances))[:, None]).T @ whole / len(y_P) + penalty
        weights -= np.linalg.solve(curve, slope)
    return weights


def _by_picture(questions: Path) -> dict[str, list[Question]]:
    """The questions of each picture, in the order of the file."""
    found: dict[str, list[Question]] = defaultdict(list)
    for row in json.loads(questions.read_text(encoding="utf-8")):
        found[row["image"]].append(Question(**row))
    return found


if __name__ == "__main__":
    app()
