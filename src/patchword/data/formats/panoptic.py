"""COCO's panoptic segmentation as one class per cell of a tower's grid: human labels for the patches.

A panoptic JSON lists for each picture a PNG whose pixels hold ids of segments (R + 256 G + 65536 B; 0:
unlabelled), and the class of each segment (Kirillov et al. 2019, arXiv 1801.00868). The cells are those of
the part of the picture that the tower sees.

Shape legend: H, W rows and columns of the picture; N cells of the grid, row by row.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np

from patchword.data.isolated import PictureReader
from patchword.data.pictures import Preprocessing
from patchword.data.records import CaptionRecord
from patchword.data.store import FORMAT, Store, fingerprint, picture_files, write_store
from patchword.errors import DataError, counted

UNLABELLED = -1


class Segments(NamedTuple):
    """The segments of one picture."""

    file: str
    """The PNG, relative to the folder of the masks."""
    classes: dict[int, int]
    """Class (`category_id`) of each segment id."""


def read_panoptic(path: Path) -> dict[int | str, Segments]:
    """Reads segments by image id. Raises DataError where the file is missing or no panoptic JSON."""
    try:
        listed = json.loads(Path(path).read_text(encoding="utf-8"))["annotations"]
        return {
            one["image_id"]: Segments(
                one["file_name"], {part["id"]: part["category_id"] for part in one["segments_info"]}
            )
            for one in listed
        }
    except FileNotFoundError:
        raise DataError(
            f"no panoptic annotations at {path}: give COCO's panoptic_train2017.json, or a file of its form"
        ) from None
    except (ValueError, KeyError, TypeError) as error:
        expected = 'expected "annotations" with image_id, file_name and segments_info (id, category_id)'
        raise DataError(
            f"{path} is no panoptic JSON ({type(error).__name__}: {error}); {expected}"
        ) from error


def segment_ids(colours_HW3: np.ndarray) -> np.ndarray:
    """Returns the segment id of each pixel of a stored mask (H, W), int32, from its uint8 colours."""
    return colours_HW3.astype(np.int32) @ np.array([1, 256, 65536], dtype=np.int32)


def cell_classes(
    ids_HW: np.ndarray, classes: dict[int, int], seen: tuple[float, float, float, float], hw: tuple[int, int]
) -> np.ndarray:
    """Returns the class of each cell (N), int32: that of most of its pixels; -1 where most are unlabelled.

    Args:
        ids_HW: segment id of each pixel.
        seen: the part of the picture that the tower sees, in pixels (`Preprocessing.seen`).
        hw: rows and columns of the grid.
    """
    found, rows_HW = np.unique(ids_HW, return_inverse=True)
    kinds = np.array([classes.get(int(one), UNLABELLED) for one in found], dtype=np.int32)
    known, columns = np.unique(kinds, return_inverse=True)
    of_pixel_HW = columns[rows_HW.reshape(ids_HW.shape)]
    (height, width), (left, top, right, bottom) = ids_HW.shape, seen
    row_H = np.floor((np.arange(height) + 0.5 - top) / (bottom - top) * hw[0]).astype(int)
    column_W = np.floor((np.arange(width) + 0.5 - left) / (right - left) * hw[1]).astype(int)
    inside_HW = ((row_H >= 0) & (row_H < hw[0]))[:, None] & ((column_W >= 0) & (column_W < hw[1]))
    cells_HW = row_H[:, None] * hw[1] + column_W
    counted = cells_HW[inside_HW] * len(known) + of_pixel_HW[inside_HW]
    areas_NK = np.bincount(counted, minlength=hw[0] * hw[1] * len(known)).reshape(-1, len(known))
    # A cell smaller than a pixel may contain no pixel centre; it takes the pixel in which it lies.
    middle_h = np.clip((top + (np.arange(hw[0]) + 0.5) / hw[0] * (bottom - top)).astype(int), 0, height - 1)
    middle_w = np.clip((left + (np.arange(hw[1]) + 0.5) / hw[1] * (right - left)).astype(int), 0, width - 1)
    middle_N = of_pixel_HW[middle_h[:, None], middle_w].flatten()
    return known[np.where(areas_NK.any(axis=1), areas_NK.argmax(axis=1), middle_N)].astype(np.int32)


def panoptic_store(
    annotations: Path,
    masks: Path,
    records: Sequence[CaptionRecord],
    preprocessing: Preprocessing,
    hw: tuple[int, int],
    cache: Path,
    advance: Callable[[int], None],
) -> Store:
    """Returns the classes of all records' cells, computed once: field "classes", (pictures, N) int32.

    A picture without annotation has -1 everywhere.

    Raises:
        DataError: no picture has an annotation, or a mask has no pixel of the segments that the annotations
            list for it.
        StoreError: a mask is missing.
        PictureError: a mask cannot be decoded.
    """
    segments = read_panoptic(annotations)
    ours = [segments.get(record.image_id) for record in records]
    listed = [one.file for one in ours if one is not None]
    if not listed:
        raise DataError(
            f"{annotations} has segments of {counted(len(segments), 'picture')}, and none of them "
            "is among the "
            "training pictures: ids differ"
        )
    content = {
        "masks": picture_files(masks, listed),
        "file": picture_files(annotations.parent, [annotations.name]),
        "hw": list(hw),
    }
    content |= {
        "preprocessing": preprocessing.model_dump(mode="json"),
        "files": [record.file for record in records],
        "format": FORMAT,
    }
    key = fingerprint(content)
    folder = cache / "panoptic" / key[:20]
    if (folder / "manifest.json").exists():
        return Store.open(folder, {"fingerprint": key})

    def chunks() -> Iterator[dict[str, np.ndarray]]:
        with PictureReader() as reader:
            for first in range(0, len(ours), 64):
                some = ours[first : first + 64]
                yield {"classes": np.stack([_classes(one, masks, preprocessing, hw, reader) for one in some])}

    return write_store(folder, [record.file for record in records], {"fingerprint": key}, chunks(), advance)


def _classes(
    segments: Segments | None,
    masks: Path,
    preprocessing: Preprocessing,
    hw: tuple[int, int],
    reader: PictureReader,
) -> np.ndarray:
    if segments is None:
        return np.full(hw[0] * hw[1], UNLABELLED, dtype=np.int32)
    ids_HW = segment_ids(np.asarray(reader.open(masks / segments.file)))
    if segments.classes and not np.isin(list(segments.classes), ids_HW).any():
        raise DataError(
            f"{masks / segments.file}: no pixel belongs to a segment that the annotations list; the folder "
            "is of other masks"
        )
    height, width = ids_HW.shape
    return cell_classes(ids_HW, segments.classes, preprocessing.seen(width, height), hw)
