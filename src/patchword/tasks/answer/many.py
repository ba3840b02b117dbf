"""Answers as the work of a job (`jobs/`): the questions about each picture of a data set; and `predict` on a
cluster, which puts the answers together."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from PIL import Image

from patchword.data.formats.questions import read_questions
from patchword.data.formats.readers import split_records
from patchword.data.questions import gather
from patchword.data.records import QuestionRecord
from patchword.files import text_digest, write_json
from patchword.jobs.files import anywhere, complain, elsewhere, rows_of_files
from patchword.jobs.part import Job
from patchword.tasks.answer.model import load_answerer
from patchword.tasks.requests import PredictRequest

COLUMNS = {"answers": "strings"}


class AnswersOfPictures:
    """Pictures to the answers of all questions of a split about them, in the order of the questions."""

    def __init__(
        self, model: str, device: str | None, data: str, answers: str | None, split: str, images: str
    ) -> None:
        self._model = load_answerer(model, device)
        records = split_records(read_questions(Path(data), answers and Path(answers)), split)
        self._asked = {str(Path(images) / file): about for file, about in gather(records).items()}

    def __call__(self, pictures: Sequence[Image.Image], names: Sequence[str]) -> list[dict[str, Any]]:
        """One row per picture."""
        asked = [(place, record) for place, name in enumerate(names) for record in self._asked[name]]
        owners_R = torch.tensor([place for place, _ in asked], device=self._model.device)
        questions = [record.question for _, record in asked]
        found = self._model.answer(self._model.features(list(pictures)), questions, owners_R)
        rows: list[dict[str, Any]] = [{"answers": []} for _ in pictures]
        for (place, _), best in zip(asked, found, strict=True):
            rows[place]["answers"].append(best[0].text)
        return rows


def write_answers(request: PredictRequest, records: Sequence[QuestionRecord]) -> tuple[int, int]:
    """Write what `predict` writes, made by workers: rows {question_id, answer}. Gives their number, and how
    many questions are about pictures that could not be read."""
    asked = gather(records)
    settings = {"model": anywhere(request.model), "device": request.device, "data": anywhere(request.data)}
    settings |= {"answers": None if request.answers is None else anywhere(request.answers)}
    settings |= {"split": request.split, "images": str(request.images.resolve())}
    same = {"questions": text_digest("\n".join(map(repr, records)))}
    job = Job("", "tasks.answer.many:AnswersOfPictures", settings, COLUMNS, request.batch, same)
    made = rows_of_files(request.images, list(asked), job, elsewhere(request.cluster, request.parts))
    rows: list[dict[str, Any]] = []
    lost = 0
    for file, row in made.read(["answers"]):
        if row["problem"] is not None:
            complain(row["problem"])
            lost += len(asked[file])
            continue
        rows += [
            {"question_id": record.question_id, "answer": answer}
            for record, answer in zip(asked[file], row["answers"], strict=True)
        ]
    write_json(request.out, rows)
    made.remove()
    return len(rows), lost
