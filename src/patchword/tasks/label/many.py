"""Labels as the work of a job (`jobs/`): the rows of a table about each picture; and `predict` on a cluster,
which puts the rows together."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from patchword.data.formats.labels import absent
from patchword.data.records import LabelRecord
from patchword.errors import ConfigError, PictureError
from patchword.files import text_digest
from patchword.jobs.files import anywhere, elsewhere, rows_of_files
from patchword.jobs.part import Job
from patchword.tasks.label.model import (
    LabellingModel,
    RowPrediction,
    load_labelling_model,
    open_table,
    rows_of_split,
)
from patchword.tasks.requests import MissingChoice, PredictRequest

COLUMNS = {"probabilities": "floats"}


class LabelsOfRows:
    """Pictures to the probabilities of all rows of a split about them, in the order of the table, one row's
    after the other's."""

    def __init__(
        self, model: str, device: str | None, data: str, split: str, images: str, missing: MissingChoice
    ) -> None:
        self._model = load_labelling_model(model, device)
        records = rows_of_split(open_table(self._model, Path(data)), split)
        about = _texts_of_pictures(self._model, records, Path(images), missing)
        self._texts = {str(Path(images) / file): texts for file, texts in about.items()}

    def __call__(self, pictures: Sequence[Image.Image], names: Sequence[str]) -> list[dict[str, Any]]:
        """One row per picture."""
        texts = [self._texts[name] for name in names]
        shown = [picture for picture, about in zip(pictures, texts, strict=True) for _ in about]
        shares_RY = self._model.probabilities(shown, [text for about in texts for text in about])
        ends = np.cumsum([len(about) for about in texts])[:-1]
        return [{"probabilities": part.ravel().tolist()} for part in np.split(shares_RY, ends)]


def rows_on_cluster(
    classifier: LabellingModel,
    request: PredictRequest,
    unreadable: Callable[[LabelRecord, PictureError], None],
) -> Iterator[RowPrediction]:
    """`predict_rows` with pictures looked at by workers; rows of which only the text is read are labelled
    here.

    Raises ConfigError for a model that looks at no pictures.
    """
    if not classifier.reads[0]:
        raise ConfigError(f"{request.model} reads texts alone: leave out --cluster, which is for pictures")
    table, images = open_table(classifier, request.data), request.images.resolve()
    about = _texts_of_pictures(classifier, rows_of_split(table, request.split), images, request.missing)
    settings = {"model": anywhere(request.model), "device": request.device, "data": anywhere(request.data)}
    settings |= {"split": request.split, "images": str(images), "missing": request.missing}
    same = {"texts": text_digest(repr(list(about.values())))}
    job = Job("", "tasks.label.many:LabelsOfRows", settings, COLUMNS, request.batch, same)
    made = rows_of_files(images, list(about), job, elsewhere(request.cluster, request.parts))
    width = len(classifier.settings.labels)
    found: dict[str, list[np.ndarray]] = {}
    problems: dict[str, str] = {}
    for file, row in made.read(["probabilities"]):
        if row["problem"] is None:
            shares = np.asarray(row["probabilities"], dtype=np.float32)
            found[file] = list(shares.reshape(-1, width)[::-1])
        else:
            problems[file] = row["problem"]
    for record in rows_of_split(table, request.split):
        no_image, no_text = absent(record, images, classifier.reads, request.missing)
        if not no_image and record.file in found:
            yield RowPrediction(record, found[record.file].pop())
        elif no_image or (request.missing == "text-only" and classifier.reads[1] and record.text):
            text = "" if no_text else record.text
            yield RowPrediction(record, classifier.probabilities([None], [text])[0])
        else:
            unreadable(record, PictureError(problems[record.file]))
    made.remove()


def _texts_of_pictures(
    classifier: LabellingModel, records: Iterator[LabelRecord], images: Path, missing: MissingChoice
) -> dict[str, list[str]]:
    """The texts that go with each picture, in the order of the table."""
    about: dict[str, list[str]] = defaultdict(list)
    for record in records:
        no_image, no_text = absent(record, images, classifier.reads, missing)
        if not no_image:
            about[record.file].append("" if no_text else record.text)
    return dict(about)
