"""Captions of pictures in tar shards (`data/shards.py`), as records like any other.

A record's file is SHARD.tar#NAME, below the folder of the shards. A folder train, val or test says the split,
or a shard whose name begins so (val-00000.tar).
"""

from __future__ import annotations

import re
from pathlib import Path

from patchword.data.formats.complaints import SPLITS, Complain, raise_at_once
from patchword.data.records import CaptionRecord
from patchword.data.shards import index_of, shards_of
from patchword.errors import DataError


def read_shards(place: Path, complain: Complain) -> list[CaptionRecord]:
    """The pairs of all shards of a folder, a glob or a file.

    One of a million that cannot be used ends no training: it is left out, and `left_out` lists it; a
    `complain` of one's own hears of each. Raises DataError where there is no shard, or one is no tar file.
    """
    records = []
    for shard in _some(place):
        index, name = index_of(shard), shard.relative_to(root_of(place)).as_posix()
        split = split_of(name)
        for sample in index.samples:
            file = f"{name}#{sample.name}"
            records.append(CaptionRecord(file, file, sample.captions, split))
        for reason in () if complain is raise_at_once else index.left_out:
            complain("sample", *reason.split(": ", 1))
    return records


def left_out(place: Path) -> list[str]:
    """Why samples of these shards are left out, one reason each."""
    return [reason for shard in _some(place) for reason in index_of(shard).left_out]


def root_of(place: Path) -> Path:
    """The folder that the files of the records are relative to."""
    return place if place.is_dir() else place.parent


def _some(place: Path) -> list[Path]:
    found = shards_of(place)
    if not found:
        raise DataError(f"{place}: there is no .tar here: name a folder of shards, a glob or one shard")
    return found


def split_of(name: str) -> str | None:
    """The split that the path of a shard says; None where it says none."""
    folder, _, shard = name.rpartition("/")
    first = re.match(r"[a-z]+", shard.lower())
    candidates = [*folder.lower().split("/"), first.group() if first else ""]
    return next((SPLITS[one] for one in candidates if one in SPLITS), None)
