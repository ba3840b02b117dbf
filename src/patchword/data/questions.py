"""Batches of questions: B pictures with some of their questions each.

A tower then runs once per picture, for any number of questions.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple

import numpy as np
import torch
from torch import Tensor

from patchword.data.captions import Inputs, PictureInputs, PlanEntry, Rows, TokenSource, padded, plan_epoch
from patchword.data.records import QuestionRecord
from patchword.errors import DataError
from patchword.ids import SpecialIds


class QuestionBatch(NamedTuple):
    """B pictures and R questions about them.

    `questions_RL` holds start, words, padding; `lengths_R` counts all but the padding.
    """

    image_ids: tuple[int | str, ...]
    question_ids: tuple[int | str, ...]
    inputs: Inputs
    questions_RL: Tensor
    lengths_R: Tensor
    picture_of_row_R: Tensor
    answers: Tensor
    """Chosen answers: numbers (R,) in the answer list, or scores (R, A). Generated answers: start, words,
    end, padding (R, T)."""
    answer_lengths_R: Tensor | None = None
    """Number of tokens of each answer without padding; None where answers are chosen."""

    @property
    def target_count(self) -> int:
        """Number of predictions: one answer per question, or the tokens of generated answers."""
        return (
            len(self.question_ids)
            if self.answer_lengths_R is None
            else int((self.answer_lengths_R - 1).sum())
        )

    @property
    def picture_count(self) -> int:
        """Number of pictures, B."""
        return len(self.image_ids)

    def to(self, device: torch.device) -> QuestionBatch:
        """Moves all tensors to a device."""
        moved: dict[str, Any] = {
            name: part.to(device, non_blocking=True)
            for name, part in self._asdict().items()
            if isinstance(part, Tensor)
        }
        return self._replace(inputs=self.inputs.to(device), **moved)


Targets = Literal["answer", "scores", "words"]
"""The training target of a question: its most frequent answer; the people's agreement on each answer; the
most frequent answer word by word."""


@dataclass(frozen=True)
class QuestionData:
    """The questions of one split, grouped by picture."""

    records: tuple[tuple[QuestionRecord, ...], ...]
    tokens: Rows
    targets: tuple[tuple[tuple[float, ...], ...], ...]
    """Per question: one answer number, the score of each answer, or the answer's token ids."""
    kind: Targets
    special: SpecialIds
    inputs: PictureInputs

    @classmethod
    def build(
        cls,
        records: Sequence[QuestionRecord],
        vocabulary: TokenSource,
        answers: Sequence[str],
        kind: Targets,
        inputs: PictureInputs,
        max_length: int,
    ) -> QuestionData:
        """Turns questions and answers into numbers; words beyond `max_length` are cut off.

        `answers` is the list to choose from. Unless the kind is "words", it must hold an answer to every
        question (see `answerable`).

        Raises:
            DataError: a question without a word, an id that the vocabulary does not have, or an answer
                outside the list; the message has the image id.
        """
        numbers = {answer: number for number, answer in enumerate(answers)}
        pictures = gather(records)
        tokens: list[tuple[tuple[int, ...], ...]] = []
        targets: list[tuple[tuple[float, ...], ...]] = []
        for same in pictures.values():
            tokens.append(tuple(_ids(record.question, record, vocabulary, max_length) for record in same))
            if kind == "words":
                targets.append(tuple(_ids(record.answer, record, vocabulary, max_length) for record in same))
            else:
                targets.append(tuple(_target(record, numbers, kind) for record in same))
        return cls(
            tuple(map(tuple, pictures.values())),
            tuple(tokens),
            tuple(targets),
            kind,
            vocabulary.special,
            inputs,
        )

    def plan(
        self, batch: int, questions_per_picture: int, generator: np.random.Generator | None
    ) -> list[list[PlanEntry]]:
        """Returns the batches of one epoch; see `plan_epoch`."""
        return plan_epoch(self.tokens, batch, questions_per_picture, False, generator)

    def batch(self, entries: Sequence[PlanEntry], generator: torch.Generator | None) -> QuestionBatch:
        """Builds the batch of plan entries; `generator` draws random views, None takes the plain pictures."""
        places = [(entry.record, j) for entry in entries for j in entry.captions]
        questions_RL, lengths_R = padded([self.tokens[i][j] for i, j in places], self.special, ends=False)
        wanted, answer_lengths_R = [self.targets[i][j] for i, j in places], None
        if self.kind == "words":
            words = [[int(number) for number in row] for row in wanted]
            answers, answer_lengths_R = padded(words, self.special, ends=True)
        else:
            answers = torch.tensor(wanted).squeeze(1) if self.kind == "answer" else torch.tensor(wanted)
        return QuestionBatch(
            image_ids=tuple(self.records[entry.record][0].image_id for entry in entries),
            question_ids=tuple(self.records[i][j].question_id for i, j in places),
            inputs=self.inputs.load([self.records[entry.record][0].file for entry in entries], generator),
            questions_RL=questions_RL,
            lengths_R=lengths_R,
            picture_of_row_R=torch.tensor(
                [b for b, entry in enumerate(entries) for _ in entry.captions], dtype=torch.long
            ),
            answers=answers,
            answer_lengths_R=answer_lengths_R,
        )


def gather(records: Iterable[QuestionRecord]) -> dict[str, list[QuestionRecord]]:
    """Groups the questions by the file of their picture."""
    pictures: dict[str, list[QuestionRecord]] = {}
    for record in records:
        pictures.setdefault(record.file, []).append(record)
    return pictures


def answer_scores(answers: Sequence[str]) -> dict[str, float]:
    """Returns the VQA accuracy that each answer would earn (Antol et al. 2015).

    It is 1 for the answer of a single annotator; otherwise it is the mean, over leaving out each annotator,
    of min(matching others / 3, 1).
    """
    if len(answers) == 1:
        return {answers[0]: 1.0}
    counts, people = Counter(answers), len(answers)
    return {
        text: (n * min((n - 1) / 3, 1) + (people - n) * min(n / 3, 1)) / people for text, n in counts.items()
    }


def answerable(record: QuestionRecord, answers: Collection[str]) -> bool:
    """True where some answer of the list earns a score."""
    return any(text in answers and score > 0 for text, score in answer_scores(record.answers).items())


def _target(record: QuestionRecord, numbers: Mapping[str, int], kind: Targets) -> tuple[float, ...]:
    scores = answer_scores(record.answers)
    if kind == "answer":
        listed = [text for text in sorted(scores, key=lambda text: -scores[text]) if text in numbers]
        if not listed:
            raise DataError(
                f"image {record.image_id}: no answer to {record.question!r} is among the {len(numbers)} "
                "answers of the list"
            )
        return (numbers[listed[0]],)
    return tuple(scores.get(text, 0.0) for text in numbers)


def _ids(text: str, record: QuestionRecord, vocabulary: TokenSource, max_length: int) -> tuple[int, ...]:
    row = tuple(vocabulary.encode(text)[:max_length])
    if not row:
        raise DataError(
            f"image {record.image_id}: {text!r} has no word; take question {record.question_id!r} out"
        )
    if not 0 <= min(row) <= max(row) < vocabulary.size:
        raise DataError(
            f"image {record.image_id}: token id {max(row)} is outside the vocabulary of {vocabulary.size} "
            "words"
        )
    return row
