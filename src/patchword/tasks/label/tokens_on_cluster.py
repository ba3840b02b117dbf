"""Tokens of two frozen towers with the pictures looked at by workers: `features --tokens` on a cluster.

rows of a table -> their pictures, each once -> jobs/files.py -> PARTS/part-N.parquet, fp16 tokens of each
picture -> a file that is mapped into memory -> the store of `tokens.py`, for which this process reads texts

The store is the one that `tokens.py` writes but for the last bits: pictures go through the tower in other
company.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image

from patchword.checkpoints import folder as checkpoint
from patchword.data.formats.labels import absent
from patchword.data.labels import LabelData
from patchword.data.store import Store, write_store
from patchword.device import choose_device
from patchword.errors import PictureError
from patchword.jobs.files import Elsewhere, FileRows, anywhere, rows_of_files
from patchword.jobs.part import Job
from patchword.tasks.label.tokens import (
    check_depth,
    expected_entries,
    longest_text,
    picture_tokens,
    text_fields,
)
from patchword.tasks.label.towers import Towers, towers_of

WORK = "tasks.label.tokens_on_cluster:PictureTokens"
_AT_ONCE = 64


class PictureTokens:
    """Pictures to the tokens before the last layers of a vision tower, as the work of a job
    (`jobs/part.py`)."""

    def __init__(self, model: str, before_last: int, device: str | None) -> None:
        self._device, self._before_last = choose_device(device), before_last
        towers = towers_of(model)
        self._vision, self._preprocessing = towers.vision.to(self._device).eval(), towers.preprocessing

    def __call__(self, pictures: Sequence[Image.Image], names: Sequence[str]) -> list[dict[str, Any]]:
        """One row per picture, with fp16 bytes."""
        pixels_BHWC = np.stack([self._preprocessing.apply(one) for one in pictures])
        pixels_B3HW = torch.from_numpy(self._preprocessing.normalise(pixels_BHWC)).to(self._device)
        image_BNC = picture_tokens(self._vision, self._before_last, pixels_B3HW)
        return [{"tokens": image_NC.tobytes()} for image_NC in image_BNC]


def store_tokens_on_cluster(
    model: str,
    before_last: int,
    rows: LabelData,
    folder: Path,
    device: str | None,
    where: Elsewhere,
) -> Store:
    """Write the store of `rows`; as `store_tokens`, and `model` is the name by which workers load the towers.

    Raises:
        ConfigError: a tower that has no such layers, the parts hold something else, or no such cluster can be
            reached.
        DataError, PictureError: a row lacks something, or a picture cannot be decoded.
    """
    towers = towers_of(model)
    check_depth(towers.vision, towers.text, before_last)
    there = [_file_of(rows, place) for place in rows.places.tolist()]
    files = list(dict.fromkeys(file for file in there if file is not None))
    settings = {"model": anywhere(model), "before_last": before_last, "device": device}
    about = {"tower": checkpoint.weights_digest(towers.vision)}
    batch = 8 if choose_device(device).type == "cpu" else _AT_ONCE
    job = Job("", WORK, settings, {"tokens": "bytes"}, batch, about)
    made = rows_of_files(rows.images, files, job, where)
    entries = expected_entries(towers.vision, towers.text, before_last, rows)
    names = [str(place) for place in rows.places.tolist()]
    chunks = _chunks(towers, before_last, rows, there, _tokens_of(made, towers, before_last), device)
    store = write_store(folder, names, entries, chunks, lambda count: None)
    made.remove()
    return store


def _file_of(rows: LabelData, place: int) -> str | None:
    """The picture of a row; None where the row has none. Raises DataError where it lacks something."""
    record = rows.table.read(place)
    return None if absent(record, rows.images, rows.reads, rows.missing)[0] else record.file


def _tokens_of(made: FileRows, towers: Towers, before_last: int) -> dict[str | None, np.ndarray]:
    """The tokens of each picture, views of one file that is mapped into memory, and of None those of no
    picture. Raises PictureError for the first that could not be decoded."""
    nothing_3HW = torch.zeros(3, *towers.preprocessing.hw)
    none_NC = picture_tokens(towers.vision.cpu().eval(), before_last, nothing_3HW[None])[0]
    path = Path(made.out) / "tokens.f2"
    with open(path, "wb") as file:
        for _, row in made.read(["tokens"]):
            if row["problem"] is not None:
                raise PictureError(row["problem"])
            file.write(row["tokens"])
    if not made.files:
        return {None: none_NC}
    shape = (len(made.files), *none_NC.shape)
    held_FNC = np.memmap(path, dtype="<f2", mode="r", shape=shape)
    return {None: none_NC, **dict(zip(made.files, held_FNC, strict=True))}


def _chunks(
    towers: Towers,
    before_last: int,
    rows: LabelData,
    there: Sequence[str | None],
    tokens: dict[str | None, np.ndarray],
    device: str | None,
) -> Iterator[dict[str, np.ndarray]]:
    """The fields of the store, some rows at a time in the order of the table."""
    chosen, longest = choose_device(device), longest_text(rows)
    text, texts = towers.text.to(chosen).eval(), replace(rows, inputs=None)
    for first in range(0, len(there), _AT_ONCE):
        batch = texts.batch(rows.places[first : first + _AT_ONCE].tolist(), None).to(chosen)
        yield {
            "image": np.stack([tokens[file] for file in there[first : first + _AT_ONCE]]),
            **text_fields(text, before_last, batch, longest),
        }
