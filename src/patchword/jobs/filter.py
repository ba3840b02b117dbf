"""A crawl of pictures with alt-text, cut down to pairs worth training on: one pass, in memory that stays
flat.

    SOURCE -> pairs, some at a time -> rules, one after the other -> OUT/shard-NNNNNNNN.parquet or .tar,
    OUT/report.json

A pair belongs to the first rule that drops it; the report counts them and keeps the first examples. What
cannot be read is dropped before all rules, and counted as well. Parquet
shards hold `name`, `text`, `width`, `height`, and `image` where the source has the picture's bytes, so that
`caption`, `label` and `filter` itself read them again. Tar shards (WebDataset: 000000.jpg, .txt, and .json
with the name) hold pictures and texts, and trainings read these too (`data/shards.py`).
"""

from __future__ import annotations

import io
import json
import tarfile
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any, Literal, NamedTuple

from patchword.errors import ConfigError, DataError
from patchword.files import write_json
from patchword.jobs.pairs import batches, find_sources
from patchword.jobs.rules import Pair, Rule

SHARD = 10_000
"""Pairs in a shard."""
EXAMPLES = 5
BROKEN = "cannot be read"
"""What the report calls pairs of which a source could not give text and picture."""


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
    left_out: dict[str, int]
    """Files in the folders that are no source, by reason."""


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
        DataError: a source that is not there or is no table or shard of pairs, or tar shards are wanted and a
            pair that is kept has no picture in its source.
    """
    sources = find_sources(names)
    write = _write_shard if to == "parquet" else _write_tar
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise ConfigError(f"{out} is there already: name a new folder for the shards")
    out.mkdir(parents=True, exist_ok=True)
    counts = dict.fromkeys((BROKEN, *(rule.name for rule in rules)), 0)
    examples: dict[str, list[tuple[str, str, str]]] = {name: [] for name in counts}
    steps: list[tuple[str, Callable[[Sequence[Pair]], list[str | None]]]] = [(BROKEN, _problems)]
    steps += [(rule.name, rule) for rule in rules]
    read = kept = shards = 0
    waiting: list[Pair] = []
    for pairs in batches(sources.files):
        read += len(pairs)
        for name, apply in steps:
            stay = []
            for pair, why in zip(pairs, apply(pairs), strict=True):
                if why is None:
                    stay.append(pair)
                    continue
                counts[name] += 1
                if len(examples[name]) < EXAMPLES:
                    examples[name].append((pair.name, pair.text[:200], why))
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
    told = [name for name in counts if name != BROKEN or counts[name]]
    dropped = tuple(Rejections(name, counts[name], tuple(examples[name])) for name in told)
    report = FilterReport(read, kept, shards, dropped, sources.left_out)
    write_json(
        out / "report.json",
        {**report._asdict(), "dropped": [one._asdict() for one in dropped]},
        indent=1,
    )
    return report


def _problems(pairs: Sequence[Pair]) -> list[str | None]:
    return [pair.problem or None for pair in pairs]


def _write_shard(out: Path, number: int, pairs: Sequence[Pair]) -> None:
    import pyarrow as arrow

    from patchword.jobs.sources import parquet

    columns: dict[str, Any] = {
        # Parquet holds UTF-8: bytes of a name that are none are written as escapes.
        "name": [pair.name.encode("utf-8", "backslashreplace").decode() for pair in pairs],
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
