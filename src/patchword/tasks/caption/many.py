"""Captions as the work of a job (`jobs/`): a model is loaded once per process and given batches; and
`predict` on a cluster, which puts their captions together."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict
from typing import Any

from PIL import Image

from patchword.data.records import CaptionRecord
from patchword.files import write_json
from patchword.jobs.files import anywhere, complain, elsewhere, rows_of_files
from patchword.jobs.part import Job
from patchword.tasks.caption.load import load
from patchword.tasks.caption.options import COLUMNS, DecodingOptions
from patchword.tasks.requests import PredictRequest


class Captions:
    """Pictures to captions; the settings are those of `patchword caption`, as plain values."""

    def __init__(self, model: str, device: str | None, options: dict[str, Any]) -> None:
        chosen = {**options, "mention": tuple(options.get("mention", ()))}
        self._model, self._name, self._options = load(model, device), model, DecodingOptions(**chosen)

    def __call__(self, pictures: Sequence[Image.Image], names: Sequence[str]) -> list[dict[str, Any]]:
        """One row per picture."""
        return [
            {"caption": one.text, "score": one.log_probability}
            | {"complete": one.complete, "model": self._name}
            for one in self._model.caption(list(pictures), trace=False, options=self._options)
        ]


def write_captions(
    request: PredictRequest, records: Sequence[CaptionRecord]
) -> tuple[list[dict[str, Any]], int, int]:
    """What `predict` writes, made by workers: rows {image_id, caption}, how many pictures could not be read,
    and how many captions were cut off."""
    files = list(dict.fromkeys(record.file for record in records))
    settings: dict[str, Any] = {"model": anywhere(request.model), "device": request.device}
    settings["options"] = asdict(request.decoding)
    job = Job("", "tasks.caption.many:Captions", settings, COLUMNS, request.batch)
    made = rows_of_files(request.images, files, job, elsewhere(request.cluster, request.parts))
    captions, cut = {}, 0
    for file, row in made.read(["caption", "complete"]):
        if row["problem"] is None:
            captions[file] = row["caption"]
            cut += not row["complete"]
        else:
            complain(row["problem"])
    rows = [
        {"image_id": record.image_id, "caption": captions[record.file]}
        for record in records
        if record.file in captions
    ]
    write_json(request.out, rows)
    made.remove()
    return rows, len(records) - len(rows), cut
