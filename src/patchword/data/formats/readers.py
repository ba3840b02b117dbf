"""From an annotation file or folder, whatever its format, to typed records."""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path, PurePath
from typing import TypeVar

from patchword.data.formats import coco as json_formats
from patchword.data.formats import folders as folder_formats
from patchword.data.formats import tables as table_formats
from patchword.data.formats.complaints import Complain, parse_json, raise_at_once, read_text
from patchword.data.records import CaptionRecord, LabelRecord, QuestionRecord
from patchword.errors import DataError
from patchword.lookup import look_up

Record = TypeVar("Record", CaptionRecord, QuestionRecord, LabelRecord)

FORMATS = (
    "Karpathy JSON, COCO captions JSON, a Flickr token file (picture.jpg#0<TAB>caption) with its split "
    "lists beside it, "
    "a CSV, JSONL or Parquet file with image, caption and if wanted split, a folder with metadata.csv, "
    ".jsonl or .parquet, "
    "one that `datasets` saved, a folder of Parquet files, tar shards (WebDataset), or a folder of "
    "photo.jpg beside photo.txt"
)
SHARDS = "data.formats.shards:read_shards"


def read_captions(path: Path | str, complain: Complain = raise_at_once) -> list[CaptionRecord]:
    """Read the captions of a data set; the format is recognised by what the file holds.

    Ids come out unique and every record has a caption (only in test there may be none). Raises `DataError` at
    the first fault, with file, line or entry, what was found and what was expected; with a `complain` of
    one's own, faulty parts are left out instead.
    """
    path = Path(path)
    records = _unique(_read_format(path, complain), path, complain)
    if not records:
        complain("nothing", str(path), f"no usable caption was found. Expected {FORMATS}.")
    return records


def _read_format(path: Path, complain: Complain) -> list[CaptionRecord]:
    if path.suffix == ".tar":  # a shard, or a glob of them
        return look_up(SHARDS)(path, complain)
    if not path.exists():
        raise DataError(f"{path}: does not exist. Expected {FORMATS}.")
    if path.is_dir() and (reader := _folder_reader(path)) is not None:
        return look_up(reader)(path, complain)
    if path.is_dir():
        token_file = folder_formats.token_file_in(path)
        if token_file is None:
            return folder_formats.read_folder(path, complain)
        path = token_file
    if path.suffix.lower() in (".parquet", ".arrow"):
        return look_up("data.formats.arrow:read_parquet")(path, complain)
    text = read_text(path, complain)
    if path.suffix.lower() in (".jsonl", ".ndjson"):
        return table_formats.read_json_lines(text, path, complain)
    if path.suffix.lower() == ".json" or text.lstrip()[:1] in ("{", "["):
        return _read_json(text, path, complain)
    if folder_formats.is_token_file(text):
        return folder_formats.read_flickr(text, path, complain)
    return table_formats.read_csv(text, path, complain)


def _folder_reader(folder: Path) -> str | None:
    """What reads a folder in another library's layout, imported only where there is one; None for pictures
    with texts beside them."""
    if any((folder / name).is_file() for name in ("dataset_dict.json", "state.json")):
        return "data.formats.arrow:read_saved"
    if any(folder.glob("metadata.*")) or any(folder.glob("*/metadata.*")):
        return "data.formats.imagefolder:read_imagefolder"
    if any(folder.glob("*.tar")) or any(folder.glob("*/*.tar")):
        return SHARDS
    # A table beside photo.jpg and photo.txt is not what these pictures are described by.
    tables = any(folder.glob("*.parquet")) or any(folder.glob("*/*.parquet"))
    return "data.formats.arrow:read_parquet_folder" if tables and not any(folder.glob("*.txt")) else None


def _read_json(text: str, path: Path, complain: Complain) -> list[CaptionRecord]:
    content = parse_json(text, str(path), complain)
    if json_formats.is_coco(content):
        return json_formats.read_coco(content, path, complain)
    if json_formats.is_karpathy(content):
        return json_formats.read_karpathy(content, path, complain)
    if isinstance(content, list):
        return table_formats.read_json_list(content, path, complain)
    if content is not None:
        found = (
            f"an object with {', '.join(map(str, list(content)[:6])) or 'nothing'}"
            if isinstance(content, dict)
            else repr(content)[:40]
        )
        complain("layout", str(path), f"found {found}. Expected {FORMATS}.")
    return []


def _unique(records: list[CaptionRecord], path: Path, complain: Complain) -> list[CaptionRecord]:
    """The records without those whose id was there before, or whose picture was there before in another
    split.
    """
    by_id: dict[int | str, CaptionRecord] = {}
    split_of: dict[str, str | None] = {}
    for record in records:
        where = f"{path}, {record.file}"
        if record.image_id in by_id:
            other = by_id[record.image_id].file
            complain(
                "duplicate-id",
                where,
                f"the image id {record.image_id!r} is also that of {other}: ids must be unique",
            )
        elif split_of.setdefault(record.file, record.split) != record.split:
            complain(
                "overlap",
                where,
                f"the picture is in {record.split} and in {split_of[record.file]}: it belongs to one split",
            )
        else:
            by_id[record.image_id] = record
    return list(by_id.values())


def split_records(records: Sequence[Record], split: str) -> list[Record]:
    """The records of one split, in their order.

    Where no record says its split, one picture in ten is val and the others are train, chosen by the hash of
    the file name: the same ones each time, whatever else is added. Of few pictures, five (or a quarter) are
    val, those with the lowest hashes. Raises `DataError` when the split holds nothing.
    """
    if records and all(record.split is None for record in records):
        aside = _held_out(list(dict.fromkeys(record.file for record in records)))
        records = [replace(record, split="val" if record.file in aside else "train") for record in records]
    found = [record for record in records if record.split == split]
    if not found:
        counts = Counter(record.split or "none" for record in records)
        there = ", ".join(f"{name} {count}" for name, count in sorted(counts.items())) or "nothing"
        raise DataError(
            f"no record belongs to the split {split!r}; there is: {there}. Choose one of these, or assign it."
        )
    return found


_LEAST_HELD_OUT = 5
"""Pictures that select a model where there are four times as many: on fewer, scores are luck."""


def _held_out(files: Sequence[str]) -> set[str]:
    """The pictures that are val: one in ten; of few five or a quarter, and never more than half."""
    ranked = sorted(files, key=lambda file: (not held_out_by_name(file), _hash_of_name(file)))
    by_name = sum(map(held_out_by_name, files))
    least = min(_LEAST_HELD_OUT, len(files) // 4)
    return set(ranked[: min(max(by_name, least), len(files) // 2)])


def held_out_by_name(file: str) -> bool:
    """Whether a picture is val where its data set has no splits: one in ten, always the same ones, wherever
    the data set lies."""
    return _hash_of_name(file) % 10 == 0


def _hash_of_name(file: str) -> int:
    name = PurePath(file).name if PurePath(file).is_absolute() else file
    digest = hashlib.blake2b(name.encode("utf-8", "surrogateescape"), digest_size=4).digest()
    return int.from_bytes(digest, "big")
