"""A crawl of pictures with alt-text, cut down to pairs worth training on: one pass, in memory that stays
flat.

    SOURCE -> pairs, some at a time -> rules, one after the other -> OUT/shard-NNNNNNNN.parquet or .tar,
    OUT/report.json

A pair belongs to the first rule that drops it; the report counts them and keeps the first examples. Parquet
shards hold `name`, `text`, `width`, `height`, and `image` where the source has the picture's bytes, so that
`caption`, `label` and `filter` itself read them again. Tar shards (WebDataset: 000000.jpg, .txt, and .json
with the name) hold pictures and texts, and trainings read these too (`data/shards.py`).
"""

from __future__ import annotations

import csv
import io
import json
import os
import tarfile
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, Literal, NamedTuple

from patchword.data.formats.tables import CAPTION, IMAGE
from patchword.data.headers import SUFFIXES
from patchword.data.shards import key_and_suffix
from patchword.errors import ConfigError, DataError
from patchword.files import write_json
from patchword.jobs.rules import Pair, Rule
from patchword.jobs.sources import open_any

AT_ONCE = 1024
SHARD = 10_000
"""Pairs in a shard."""
EXAMPLES = 5
_TEXTS = (*CAPTION, "alt", "alt_text", "txt")
_BYTES = ("image", "jpg", "png", "picture")
_NAMES = ("name", "url", "key", "id", *IMAGE)


class Rejections(NamedTuple):
    """What a rule dropped."""

    rule: str
    pairs: int
    examples: tuple[tuple[str, str, str], ...]
    """Name, text and reason of the first."""


class FilterReport(NamedTuple):
    """What a pass did."""

    read: int
    kept: int
    shards: int
    dropped: tuple[Rejections, ...]
    """In the order of the rules."""


def filter_pairs(
    names: Iterable[str],
    out: Path,
    rules: Sequence[Rule],
    progress: Callable[[int, int], None],
    to: Literal["parquet", "tar"] = "parquet",
) -> FilterReport:
    """Write the pairs that all rules keep; `progress` is called with (read, kept).

    Raises:
        ConfigError: `out` is there already.
        DataError: a source is no table or shard of pairs, or tar shards are wanted and a pair that is kept
            has no picture in its source.
    """
    write = _write_shard if to == "parquet" else _write_tar
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise ConfigError(f"{out} is there already: name a new folder for the shards")
    out.mkdir(parents=True, exist_ok=True)
    counts = dict.fromkeys((rule.name for rule in rules), 0)
    examples: dict[str, list[tuple[str, str, str]]] = {name: [] for name in counts}
    read = kept = shards = 0
    waiting: list[Pair] = []
    for pairs in batches(names):
        read += len(pairs)
        for rule in rules:
            stay = []
            for pair, why in zip(pairs, rule(pairs), strict=True):
                if why is None:
                    stay.append(pair)
                    continue
                counts[rule.name] += 1
                if len(examples[rule.name]) < EXAMPLES:
                    examples[rule.name].append((pair.name, pair.text[:200], why))
            pairs = stay
        kept += len(pairs)
        waiting += pairs
        while len(waiting) >= SHARD:
            write(out, shards, waiting[:SHARD])
            waiting, shards = waiting[SHARD:], shards + 1
        progress(read, kept)
    if waiting:
        write(out, shards, waiting)
        shards += 1
    dropped = tuple(Rejections(name, counts[name], tuple(examples[name])) for name in counts)
    report = FilterReport(read, kept, shards, dropped)
    write_json(
        out / "report.json",
        {**report._asdict(), "dropped": [one._asdict() for one in dropped]},
        indent=1,
    )
    return report


def batches(names: Iterable[str]) -> Iterator[list[Pair]]:
    """The pairs of all sources in order, AT_ONCE at a time."""
    waiting: list[Pair] = []
    for name in names:
        for pair in _pairs(name):
            waiting.append(pair)
            if len(waiting) == AT_ONCE:
                yield waiting
                waiting = []
    if waiting:
        yield waiting


def _pairs(name: str) -> Iterator[Pair]:
    if os.path.isdir(name):
        inside = sorted(
            os.path.join(name, file) for file in os.listdir(name) if file.endswith((".parquet", ".tar"))
        )
        if not inside:
            raise DataError(f"{name}: no .parquet and no .tar in this folder")
        for file in inside:
            yield from _pairs(file)
    elif name.endswith(".parquet"):
        yield from _of_parquet(name)
    elif name.endswith(".tar"):
        yield from _of_tar(name)
    elif name.endswith((".jsonl", ".csv")):
        yield from _of_rows(name)
    else:
        expected = "expected .parquet, .tar (WebDataset), .jsonl or .csv, or a folder of shards"
        raise DataError(f"{name}: {expected}")


def _of_parquet(name: str) -> Iterator[Pair]:
    from patchword.jobs.sources import parquet

    with open_any(name) as file:
        opened = parquet().ParquetFile(file)
        own = {one.lower(): one for one in opened.schema_arrow.names}
        text = next((own[one] for one in _TEXTS if one in own), None)
        if text is None:
            raise DataError(f"{name}: no column of texts: expected one of {', '.join(_TEXTS)}")
        kinds = {field.name: str(field.type) for field in opened.schema_arrow}
        held = next((own[one] for one in _BYTES if one in own and ("binary" in kinds[own[one]])), None)
        named = next((own[one] for one in _NAMES if one in own and own[one] != held), None)
        size = [own[one] for one in ("width", "height") if one in own]
        columns = [one for one in (text, held, named, *size) if one]
        number = 0
        for batch in opened.iter_batches(batch_size=AT_ONCE, columns=columns):
            for row in batch.to_pylist():
                sides = [int(row[one] or 0) for one in size] if len(size) == 2 else [0, 0]
                called = str(row[named]) if named else f"{name}#{number}"
                yield _pair(called, str(row[text] or ""), row[held] if held else None, *sides)
                number += 1


def _of_tar(name: str) -> Iterator[Pair]:
    """WebDataset: files that follow each other under one name are one pair."""
    base, text, content = "", "", None
    with open_any(name) as file, tarfile.open(fileobj=file, mode="r|") as archive:
        for member in archive:
            stem, suffix = key_and_suffix(member.name)
            if stem != base and base:
                yield _pair(f"{name}#{base}", text, content)
                text, content = "", None
            base, stream = stem, archive.extractfile(member)
            if stream is None:
                continue
            if suffix in ("txt", "caption"):
                text = stream.read().decode("utf-8", "replace").strip()
            elif f".{suffix}" in SUFFIXES:
                content = stream.read()
    if base:
        yield _pair(f"{name}#{base}", text, content)


def _of_rows(name: str) -> Iterator[Pair]:
    with open_any(name) as file:
        lines = io.TextIOWrapper(file, encoding="utf-8", errors="replace", newline="")
        rows: Iterable[dict[str, Any]] = (
            csv.DictReader(lines)
            if name.endswith(".csv")
            else (json.loads(line) for line in lines if line.strip())
        )
        try:
            for number, row in enumerate(rows):
                own = {str(key).lower(): value for key, value in row.items()}
                text = next((own[one] for one in _TEXTS if own.get(one)), "")
                called = next((own[one] for one in _NAMES if own.get(one)), f"{name}#{number}")
                sides = (int(own.get("width") or 0), int(own.get("height") or 0))
                yield _pair(str(called), str(text), None, *sides)
        except ValueError as error:
            raise DataError(f"{name}: a row cannot be read ({error}); earlier rows were taken") from error


def _pair(name: str, text: str, content: bytes | None, width: int = 0, height: int = 0) -> Pair:
    if content is not None and not width:
        width, height = _sides(content)
    return Pair(name, " ".join(text.split()), content, width, height)


def _sides(content: bytes) -> tuple[int, int]:
    """Width and height from a picture's header; 0 for what is no picture, which `Readable` explains."""
    from PIL import Image

    try:
        with Image.open(io.BytesIO(content)) as opened:
            return opened.size
    except (OSError, ValueError, Image.DecompressionBombError):
        return 0, 0


def _write_shard(out: Path, number: int, pairs: Sequence[Pair]) -> None:
    import pyarrow as arrow

    from patchword.jobs.sources import parquet

    columns: dict[str, Any] = {
        "name": [pair.name for pair in pairs],
        "text": [pair.text for pair in pairs],
        "width": arrow.array([pair.width for pair in pairs], arrow.int32()),
        "height": arrow.array([pair.height for pair in pairs], arrow.int32()),
    }
    if any(pair.content is not None for pair in pairs):
        columns["image"] = arrow.array([pair.content for pair in pairs], arrow.binary())
    # Hidden by its dot: whoever reads all of the folder's Parquet takes no half of a shard.
    aside = out / f".shard-{number:08d}.parquet"
    parquet().write_table(arrow.table(columns), aside, row_group_size=1000)
    aside.replace(out / f"shard-{number:08d}.parquet")


def _write_tar(out: Path, number: int, pairs: Sequence[Pair]) -> None:
    aside = out / f".shard-{number:08d}.tar"
    with tarfile.open(aside, "w") as archive:
        for place, pair in enumerate(pairs):
            if pair.content is None:
                raise DataError(
                    f"{pair.name}: its source has no bytes of the picture, and a tar shard holds them: leave "
                    "out --to tar, or filter Parquet or tar shards with pictures"
                )
            about = {"name": pair.name, "width": pair.width, "height": pair.height}
            files = {_suffix(pair.content): pair.content, "txt": pair.text.encode("utf-8", "replace")}
            files["json"] = json.dumps(about).encode()
            for suffix, content in files.items():
                member = tarfile.TarInfo(f"{place:06d}.{suffix}")
                member.size = len(content)
                archive.addfile(member, io.BytesIO(content))
    aside.replace(out / f"shard-{number:08d}.tar")


def _suffix(content: bytes) -> str:
    """The suffix of a picture by how its file begins; jpg where that is not known: readers look again."""
    starts = {b"\x89PNG": "png", b"GIF8": "gif", b"BM": "bmp", b"II*\0": "tif", b"MM\0*": "tif"}
    if content[:4] == b"RIFF" and content[8:12] == b"WEBP":
        return "webp"
    return next((suffix for start, suffix in starts.items() if content.startswith(start)), "jpg")
