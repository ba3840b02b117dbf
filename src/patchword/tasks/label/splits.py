"""Which rows of a table are trained on, which select the model, and which labels there are."""

from __future__ import annotations

from pathlib import Path
from typing import NamedTuple

import numpy as np

from patchword.data.formats.labels import LabelTable, absent
from patchword.data.formats.readers import held_out_by_name
from patchword.data.labels import known
from patchword.errors import ConfigError, DataError
from patchword.tasks.label.model import check_labels
from patchword.tasks.label.settings import LabelDataSettings
from patchword.train.data import HELD_OUT_SEED, hold_out


class Splits(NamedTuple):
    """Places of the rows in the table, labels of the training rows, and pictures that the rows name."""

    train: np.ndarray
    selection: np.ndarray
    labels: tuple[str, ...]
    files: list[str]


def read_splits(table: LabelTable, data: LabelDataSettings, sides: tuple[bool, bool]) -> Splits:
    """One pass over the table: every row of train and val is checked, and its place kept.

    Raises:
        DataError: a row that lacks its picture, text or label, or a val row with a label that no training row
        has; it
            names the row.
        ConfigError: fewer than two labels, nothing to train on, or more rows held out than there are.
    """
    places: dict[tuple[bool, str], list[int]] = {}
    labels: dict[tuple[bool, str], dict[str, str]] = {}
    files: dict[str, None] = {}
    for record in table.rows():
        said = record.split is not None
        split = record.split or ("val" if held_out_by_name(record.file or record.text) else "train")
        if split == "test":
            continue
        no_image, _ = absent(record, Path(data.images), sides, data.missing)
        if not record.labels and table.columns.separator is None:
            raise DataError(f"{record.where}: the row has no label: give one, or remove the row")
        places.setdefault((said, split), []).append(record.place)
        for label in record.labels:
            labels.setdefault((said, split), {}).setdefault(label, record.where)
        if not no_image and sides[0]:
            files[record.file] = None
    said = any(key[0] for key in places)
    train, val = (np.array(places.get((said, split), []), dtype=np.int64) for split in ("train", "val"))
    names = tuple(sorted(labels.get((said, "train"), {})))
    check_labels(table, names)
    classes = dict.fromkeys(names, 0)
    for label, where in labels.get((said, "val"), {}).items():
        known(label, where, classes)
    if data.held_out:
        kept, aside = hold_out(len(train), data.held_out, "training rows")
        train, val = train[kept], train[aside]
    if data.share < 1:
        train = _share_of_each(table, train, data.share)
    if not len(val):
        raise ConfigError(
            f"{table.path} has no rows of split val to select the model on: mark some, or set data.held_out"
        )
    return Splits(train[: data.limit] if data.limit else train, val, names, list(files))


def _share_of_each(table: LabelTable, places: np.ndarray, share: float) -> np.ndarray:
    """A share of the rows of each label (a row's first label), at least one; the same whatever the seed, and
    a smaller share is part of a larger one."""
    by_label: dict[str, list[int]] = {}
    for place in places[np.random.default_rng(HELD_OUT_SEED).permutation(len(places))]:
        record = table.read(int(place))
        by_label.setdefault(record.labels[0] if record.labels else "", []).append(int(place))
    chosen = [place for rows in by_label.values() for place in rows[: max(1, round(share * len(rows)))]]
    return np.sort(np.array(chosen, dtype=np.int64))
