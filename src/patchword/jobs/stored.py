"""A feature store whose rows are made on a cluster: workers run the tower, then one process writes the store.

files of a data set -> jobs/files.py -> PARTS/part-N.parquet, a column per field and view -> the store

The store is the one that `jobs/features.py` writes, but for two things: pictures go through the tower in
other company, which moves the last bits of what it sees, and a random view follows from the picture's own
pixels in place of its turn, so that it is the same whichever worker draws it.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from patchword.checkpoints.towers import load_tower
from patchword.data.augment import Augmentation, random_views
from patchword.data.pictures import Preprocessing
from patchword.data.store import Store, view_name, write_store
from patchword.device import choose_device
from patchword.errors import DataError, PictureError
from patchword.jobs.features import (
    Pictures,
    StoreOptions,
    Unreadable,
    Without,
    check_layer,
    larger,
    manifest_entries,
    tower_fields,
)
from patchword.jobs.files import Elsewhere, FileRows, anywhere, rows_of_files
from patchword.jobs.part import Job

WORK = "jobs.stored:TowerViews"
_AT_ONCE = 64


class TowerViews:
    """Pictures to what a frozen tower sees of their views, as the work of a job (`jobs/part.py`)."""

    def __init__(self, model: str, size: int | None, device: str | None, options: dict[str, Any]) -> None:
        tower, preprocessing = load_tower(model)
        self.device, self.options = choose_device(device), StoreOptions(**options)
        self.tower = tower.to(self.device).eval()
        self.plain = preprocessing if size is None else preprocessing.model_copy(update={"size": size})

    def __call__(self, pictures: Sequence[Image.Image], names: Sequence[str]) -> list[dict[str, Any]]:
        """One row per picture, with a column FIELD.VIEW of fp16 bytes for each field and view."""
        rows: list[dict[str, Any]] = [{} for _ in pictures]
        for view in range(self.options.view_count):
            fields, _ = tower_fields(self.tower, self._pixels(pictures, view), self.options)
            for name, values in fields.items():
                for row, value in zip(rows, values, strict=True):
                    row[f"{name}.{view}"] = value.tobytes()
        return rows

    def _pixels(self, pictures: Sequence[Image.Image], view: int) -> Tensor:
        if not view or self.options.mirror:
            pixels_BHWC = np.stack([self.plain.apply(one) for one in pictures])
            pixels_B3HW = torch.from_numpy(self.plain.normalise(pixels_BHWC)).to(self.device)
            return pixels_B3HW.flip(3) if view else pixels_B3HW
        views_B3HW = torch.cat([self._random(larger(self.plain).apply(one), view) for one in pictures])
        mean, std = (torch.tensor(values).view(1, 3, 1, 1) for values in (self.plain.mean, self.plain.std))
        return ((views_B3HW - mean) / std).to(self.device)

    def _random(self, pixels_HWC: np.ndarray, view: int) -> Tensor:
        """One random view, (1, 3, H, W)."""
        drawn = hashlib.sha256(pixels_HWC.tobytes() + bytes([view % 256])).digest()
        generator = torch.Generator().manual_seed(int.from_bytes(drawn[:7], "big"))
        pixels_1HWC = torch.from_numpy(pixels_HWC)[None]
        return random_views(pixels_1HWC, self.plain.hw[0], Augmentation(), generator)


def store_on_cluster(
    model: str,
    pictures: Pictures,
    folder: Path,
    device: str | None,
    where: Elsewhere,
    options: StoreOptions,
    unreadable: Unreadable,
) -> Store:
    """Write the store of `pictures`; arguments as for `store_features`, and `model` is the name by which
    workers load the tower.

    Raises:
        ConfigError: `until_layer` is beyond the tower's last layer, the parts hold something else, or no such
            cluster can be reached.
        DataError: none of the pictures can be decoded.
    """
    tower, own = load_tower(model)
    check_layer(tower, options)
    tower, files = tower.eval(), pictures.files
    fields, hw = tower_fields(tower, _blank(pictures.preprocessing), options)
    shapes = {name: values.shape[1:] for name, values in fields.items()}
    size = pictures.preprocessing.size if pictures.preprocessing != own else None
    settings = {"model": anywhere(model), "size": size, "device": device, "options": asdict(options)}
    columns = {f"{name}.{view}": "bytes" for view in range(options.view_count) for name in shapes}
    batch = options.batch or (8 if choose_device(device).type == "cpu" else 64)
    entries = manifest_entries(tower, pictures, options)
    about = {"tower": entries["tower"]}
    made = rows_of_files(pictures.images, files, Job("", WORK, settings, columns, batch, about), where)
    left_out: dict[str, str] = {}
    for file, row in made.read(()):
        if row["problem"] is not None:
            left_out[file] = row["problem"]
            unreadable(file, PictureError(row["problem"]))
    if files and len(left_out) == len(files):
        raise DataError(f"{pictures.images}: none of {len(files)} pictures can be read")
    entries |= {"hw": list(hw or ()), "left_out": left_out}
    rows = {view_name(name, view): name for view in range(options.view_count) for name in files}
    chunks = (chunk for view in range(options.view_count) for chunk in _chunks(made, shapes, view))
    store = write_store(folder, list(rows), entries, chunks, lambda count: None, Without(rows, left_out))
    made.remove()
    return store


def _blank(preprocessing: Preprocessing) -> Tensor:
    """A picture by which the driver learns which fields the tower gives, and of which shape."""
    return torch.zeros(1, 3, *preprocessing.hw)


def _chunks(made: FileRows, shapes: dict[str, tuple[int, ...]], view: int) -> Iterator[dict[str, np.ndarray]]:
    """The rows of one view in the order of the files, some at a time."""
    waiting: list[dict[str, np.ndarray]] = []
    for _, row in made.read([f"{name}.{view}" for name in shapes]):
        if row["problem"] is None:
            content = {name: row[f"{name}.{view}"] for name in shapes}
            waiting.append(
                {name: np.frombuffer(content[name], "<f2").reshape(shape) for name, shape in shapes.items()}
            )
        if len(waiting) == _AT_ONCE:
            yield {name: np.stack([one[name] for one in waiting]) for name in shapes}
            waiting = []
    if waiting:
        yield {name: np.stack([one[name] for one in waiting]) for name in shapes}
