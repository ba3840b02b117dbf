"""Labels without training: how often the nearest class is the right one.

w_c = normalise(mean over prompts of normalise(g(prompt)));  label = argmax over c of f(picture) . w_c
                                                             (Radford et al. 2021, section 3.1)
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np

from patchword.data.formats.labels import LabelTable, TableColumns
from patchword.data.isolated import PictureReader
from patchword.data.sources import SkippedFile, walk
from patchword.errors import DataError, PictureError, counted
from patchword.tasks.retrieve.model import TwoTowerModel
from patchword.text.templates import ClassNames

_AT_ONCE = 32


class LabelledPictures(NamedTuple):
    """Pictures and the number of the class of each."""

    files: list[Path]
    classes: list[int]
    left_out: list[SkippedFile]
    """What stands beside them and is not labelled, with the reason."""


class ZeroShot(NamedTuple):
    """What was found; shares of one."""

    top_1: float
    top_5: float
    mean_per_class: float
    pictures: int
    unreadable: int
    of_class: dict[str, tuple[int, float]]
    """Pictures and share of right ones of each class that has any."""


def class_vectors(
    model: TwoTowerModel, classes: Sequence[ClassNames], templates: Sequence[str]
) -> np.ndarray:
    """Unit vectors (classes, E): the mean of the unit vectors of all names in all templates, normalised."""
    vectors = []
    for one in classes:
        prompts = [template.format(name) for name in one.names for template in templates]
        mean_E = model.embed_texts(prompts).mean(0)
        vectors.append(mean_E / np.linalg.norm(mean_E))
    return np.stack(vectors)


def labelled_pictures(
    data: Path, images: Path | None, split: str, classes: Sequence[ClassNames], columns: TableColumns
) -> LabelledPictures:
    """Pictures of a table's split, or of a folder that has a sub-folder per class.

    Raises DataError for a label that is no class, or where there is no picture.
    """
    if not data.exists():
        raise DataError(f"{data} does not exist: give a table, or a folder with a sub-folder per class")
    number = {one.label: place for place, one in enumerate(classes)}
    left_out: list[SkippedFile] = []
    found = _folder(data, left_out) if data.is_dir() else _table(data, images, split, columns, left_out)
    rows = list(found)
    unknown = sorted({label for _, label in rows if label not in number})
    if unknown:
        raise DataError(
            f"{data}: {counted(len(unknown), 'label is', 'labels are')} no class of the file, the "
            f"first is {unknown[0]!r}: "
            "add a line for each"
        )
    if not rows:
        raise DataError(f"{data} holds no labelled picture of split {split!r}")
    return LabelledPictures([file for file, _ in rows], [number[label] for _, label in rows], left_out)


def _folder(data: Path, left_out: list[SkippedFile]) -> Iterator[tuple[Path, str]]:
    listed = walk(data)
    left_out += listed.left_out
    for path in map(Path, listed.pictures):
        if path.parent == data:
            left_out.append(SkippedFile(path, "picture in no folder of a class"))
        else:
            yield path, path.relative_to(data).parts[0]


def _table(
    data: Path, images: Path | None, split: str, columns: TableColumns, left_out: list[SkippedFile]
) -> Iterator[tuple[Path, str]]:
    if images is None:
        raise DataError(f"{data} is a table: name the folder of its pictures with --images")
    for record in LabelTable(data, columns).rows():
        if record.split not in (None, split):
            continue
        if record.labels and record.file:
            yield images / record.file, record.labels[0]
        else:
            left_out.append(SkippedFile(data, f"row without a {'picture' if record.labels else 'label'}"))


def zero_shot(
    model: TwoTowerModel,
    found: LabelledPictures,
    classes: Sequence[ClassNames],
    templates: Sequence[str],
    unreadable: Callable[[PictureError], None],
    advance: Callable[[int], None] = lambda count: None,
) -> ZeroShot:
    """Labels every picture by the nearest class. `unreadable` is called with each error of a picture; such
    pictures are in no number. Raises DataError where none could be read."""
    vectors_KE = class_vectors(model, classes, templates)
    ranks, truth, bad = [], [], 0
    with PictureReader() as reader:
        for first in range(0, len(found.files), _AT_ONCE):
            opened, right = [], []
            part = slice(first, first + _AT_ONCE)
            for file, number in zip(found.files[part], found.classes[part], strict=True):
                try:
                    opened.append(reader.open(file))
                    right.append(number)
                except PictureError as error:
                    unreadable(error)
                    bad += 1
            if opened:
                scores_BK = model.embed_images(opened) @ vectors_KE.T
                own_B1 = np.take_along_axis(scores_BK, np.array(right)[:, None], 1)
                ranks += (scores_BK > own_B1).sum(1).tolist()
                truth += right
            advance(len(found.files[part]))
    if not ranks:
        raise DataError(f"none of the {bad} pictures could be read")
    hit = np.array(ranks) == 0
    of_class = {}
    for number, one in enumerate(classes):
        mine = np.array(truth) == number
        if mine.any():
            of_class[one.label] = (int(mine.sum()), float(hit[mine].mean()))
    mean = float(np.mean([share for _, share in of_class.values()]))
    return ZeroShot(float(hit.mean()), float((np.array(ranks) < 5).mean()), mean, len(hit), bad, of_class)
