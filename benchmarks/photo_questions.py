"""Makes questions about photographs from captions and boxes, and measures who answers them.

    python benchmarks/photo_questions.py make --captions D.json --split val --out questions.json
    python benchmarks/photo_questions.py make --boxes instances.json --out questions.json
    python benchmarks/photo_questions.py measure questions.json --images photos

Yes and no are balanced for every word: as many pictures that have it as pictures that have not, so that an
answer without the picture is right half of the time. A word is in a picture when two of its captions name it
(or a box of at least a hundredth of the picture); it is absent when none does, nor a word for the same thing.
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
from patchword.data.formats.readers import read_captions
from patchword.data.records import CaptionRecord
from patchword.metrics.chair_files import COCO_SYNONYMS, read_synonyms
from patchword.tasks.caption.concepts import forms
from patchword.text.concepts import caption_words

app = typer.Typer(add_completion=False)
COLOURS = ("red", "orange", "yellow", "green", "blue", "purple", "pink", "brown", "black", "white", "gray")
_MOST_OF_A_WORD = 10
_LEAST_BOX = 0.01
_MAIN_BOX = 0.3
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
    split: Annotated[str, typer.Option(help="Split of the captions.")] = "val",
    seed: Annotated[int, typer.Option(help="Which pictures lack a word.")] = 0,
) -> None:
    """Write questions of captions, of boxes, or of both."""
    random = np.random.default_rng(seed)
    questions: list[Question] = []
    if captions is not None:
        records = [record for record in read_captions(captions) if record.split == split]
        questions += [*presence_by_captions(records, random), *colours(records)]
    if boxes is not None:
        questions += by_boxes(boxes, random)
    out.write_text(json.dumps([one._asdict() for one in questions], indent=1), encoding="utf-8")
    print(", ".join(f"{kind} {count}" for kind, count in Counter(one.kind for one in questions).items()))


def presence_by_captions(records: Sequence[CaptionRecord], random: np.random.Generator) -> list[Question]:
    """Balanced yes/no questions for the nouns that captions name often."""
    synonyms = read_synonyms(COCO_SYNONYMS)
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
        plural = word.endswith("s") and word[:-1] in known
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
    """Presence, what the picture shows and how many, of the categories of COCO."""
    pictures = [one for one in read_instances(boxes) if one.boxes]
    sides = read_synonyms(COCO_SYNONYMS)
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
        name = max(share, key=lambda name: share[name])
        if share[name] >= _MAIN_BOX:
            accepted = sorted({word for word, category in sides.items() if category == name} | {name})
            questions.append(Question(one.file, "what is it?", accepted, "what"))
        for name, found in one.boxes.items():
            if len(found) <= 6 and share[name] >= _LEAST_BOX:
                asked = f"how many {forms(name)[1]} are there?"
                questions.append(Question(one.file, asked, [str(len(found))], "count"))
    return questions


def _area(box: Sequence[float]) -> float:
    return (box[2] - box[0]) * (box[3] - box[1])
