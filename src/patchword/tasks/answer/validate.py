"""How good the answers are while a model is trained, beside what the questions alone would reach."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from patchword.data.question_only import CommonestAnswer
from patchword.data.records import QuestionRecord
from patchword.files import write_json
from patchword.metrics.answers import vqa_accuracy
from patchword.train.recipe import Validation

_SAMPLES = 24
_MOST_KINDS = 8
"""Kinds of questions that are scored apart; of more, none is."""


@dataclass(frozen=True)
class AnswerValidation:
    """The questions that select the model, the run folder, and answers guessed without the pictures."""

    selection: Sequence[QuestionRecord]
    folder: Path
    guessed: Mapping[int | str, str]

    def measure(self, predicted: Mapping[int | str, str], name: str | None) -> Validation:
        """VQA accuracy selects. The answers are written as predictions/<name>.json where there is a name."""
        given = {record.question_id: record.answers for record in self.selection}
        score = vqa_accuracy(given, predicted)["VQA_accuracy"]
        alone = vqa_accuracy(given, self.guessed)["VQA_accuracy"]
        each = score.values_per_item()
        scores = {"VQA_accuracy": score.value, "questions_alone": alone.value}
        kinds = Counter(record.kind for record in self.selection)
        for kind in kinds if len(kinds) <= _MOST_KINDS else ():
            values = [each[record.question_id] for record in self.selection if record.kind == kind]
            scores[f"VQA_accuracy, {kind}"] = float(np.mean(values))
        if name is not None:
            self._write(name, predicted, each)
        return Validation(score.value, {"scores": scores}, measure="VQA accuracy")

    def _write(
        self, name: str, predicted: Mapping[int | str, str], values: Mapping[int | str, float]
    ) -> None:
        """VQA's results format, and for the report the questions that went worst."""
        out = self.folder / "predictions" / f"{name}.json"
        out.parent.mkdir(parents=True, exist_ok=True)
        rows = [{"question_id": number, "answer": text} for number, text in predicted.items()]
        write_json(out, rows)
        worst = sorted(self.selection, key=lambda record: values[record.question_id])[:_SAMPLES]
        samples = [
            {
                "image_id": record.image_id,
                "file": record.file,
                "question": record.question,
                "answer": predicted[record.question_id],
                "references": [record.answer],
            }
            for record in worst
        ]
        write_json(self.folder / "samples.json", samples, indent=1)


def guesses(train: Sequence[QuestionRecord], selection: Sequence[QuestionRecord]) -> dict[int | str, str]:
    """The answer to each question of the selection that is commonest among training questions like it."""
    commonest = CommonestAnswer((record.question, record.kind, record.answer) for record in train)
    return {record.question_id: commonest.answer(record.question, record.kind) for record in selection}
