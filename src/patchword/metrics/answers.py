"""Numbers of visual question answering: VQA accuracy (Antol et al. 2015), its ceiling, and exact match.

Answers are compared in the form of VQA's own evaluation (`text.answers`), on both sides.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Hashable, Mapping, Sequence
from typing import TypeVar

import numpy as np

from patchword.errors import DataError, counted
from patchword.metrics.scores import Score
from patchword.text.answers import vqa_answer

Question = TypeVar("Question", bound=Hashable)
"""How questions are told apart: by their ids."""

FULL = 10
"""Annotators of a question for which VQA accuracy was made: with ten, an answer that four gave earns 1."""


def vqa_accuracy(
    answers: Mapping[Question, Sequence[str]], predicted: Mapping[Question, str]
) -> dict[str, Score]:
    """VQA accuracy: mean over the annotators left out of min(matching others / 3, 1), each question's value
    in `per_item`.

    answers: question id -> the annotators' answers (ten in VQA v2); a single answer counts 1 where it is met.
    Raises DataError where the questions differ or one has no answer.
    """
    counts = _counts(answers, predicted)
    form = _Forms()
    found = {
        question: _accuracy(count, form(predicted[question]), len(answers[question]))
        for question, count in counts.items()
    }
    return {"VQA_accuracy": Score(float(np.mean(list(found.values()))), found)}


def exact_match(
    answers: Mapping[Question, Sequence[str]], predicted: Mapping[Question, str]
) -> dict[str, Score]:
    """Share of questions that got the answer most annotators gave, or one of several equally frequent ones.
    Raises as `vqa_accuracy`."""
    form = _Forms()
    found = {
        question: float(count[form(predicted[question])] == max(count.values()))
        for question, count in _counts(answers, predicted).items()
    }
    return {"exact_match": Score(float(np.mean(list(found.values()))), found)}


def best_accuracy(answers: Mapping[Question, Sequence[str]]) -> float:
    """The VQA accuracy of the best answer to every question: what no model can exceed.

    It is below 1 where annotators disagree, and wherever a question has two or three of them, who can give an
    answer at most one or two thirds. Raises DataError where a question has no answer.
    """
    counts = _counts(answers, dict.fromkeys(answers, ""))
    best = [
        max(_accuracy(count, text, len(answers[question])) for text in count)
        for question, count in counts.items()
    ]
    return float(np.mean(best))


def annotators_remark(answers: Mapping[Question, Sequence[str]]) -> str | None:
    """What a reader must know where questions have more than one annotator and fewer than ten; None where
    there is nothing to say."""
    people = sorted({len(given) for given in answers.values()})
    if not any(1 < number < FULL for number in people):
        return None
    range_ = f"{people[0]}" if len(people) == 1 else f"{people[0]} to {people[-1]}"
    return (
        f"{range_} answers per question where VQA accuracy expects {FULL}: the best possible answers reach "
        f"{100 * best_accuracy(answers):.2f}, not 100; exact match does not depend on it"
    )


class _Forms:
    """Remembers the form of each answer: a validation compares the same few thousand answers a million
    times."""

    def __init__(self) -> None:
        self._known: dict[str, str] = {}

    def __call__(self, text: str) -> str:
        if text not in self._known:
            self._known[text] = vqa_answer(text)
        return self._known[text]


def _counts(
    answers: Mapping[Question, Sequence[str]], predicted: Mapping[Question, str]
) -> dict[Question, Counter[str]]:
    """How many annotators gave each answer."""
    if answers.keys() != predicted.keys() or not answers:
        odd = sorted(map(str, answers.keys() ^ predicted.keys()))
        raise DataError(
            f"VQA: {counted(len(answers), 'question')}, {len(odd)} ids on one side only: {', '.join(odd[:5])}"
        )
    form = _Forms()
    for question, given in answers.items():
        if not given:
            raise DataError(f"VQA: question {question} has no answer to compare with; leave it out")
    return {question: Counter(map(form, given)) for question, given in answers.items()}


def _accuracy(count: Counter[str], text: str, people: int) -> float:
    """Each annotator is left out once: one who gave the answer leaves one match fewer."""
    same = count[text]
    if people == 1:
        return float(same)
    return (same * min((same - 1) / 3, 1.0) + (people - same) * min(same / 3, 1.0)) / people
