"""One part of a job, in one process: pictures in, one Parquet file out, whole or not at all.

    OUT/part-00000042.parquet    `image`, `sha256` of the file, `problem`, and what the work says; a row per
    input OUT/journal/part-42.json     which pictures were in hand, while the part is being worked on

A part is done when its file is there, and the file appears by a rename: whatever is killed, no picture is
twice in the output and none is missing. Pictures are decoded in a process of their own, so that one that
takes too long or breaks its decoder is a row with the reason. A picture that takes the worker with it (memory
that the system takes back, a crash in the model) is found by the journal: the batch that was in hand is
worked on one by one, and a picture over which the process ended twice gets a row with the reason instead.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from PIL import Image

from patchword.data.isolated import PictureReader
from patchword.errors import PictureError
from patchword.files import write_text
from patchword.jobs.sources import Input, Part, read_part
from patchword.lookup import look_up

TRIES = 2
"""A picture over which so many processes ended is left out."""

Work = Callable[[Sequence[Image.Image], Sequence[str]], Sequence[dict[str, Any]]]
"""Pictures and their names, as the source calls them, to one row each."""


class Job(NamedTuple):
    """What a worker must know."""

    out: str
    """Folder of the output."""
    work: str
    """ "module:name" below `patchword` of what makes a `Work` of the settings."""
    settings: dict[str, Any]
    columns: dict[str, str]
    """Type of each column that the work gives: string, strings, double, bool, bytes or floats (a list of
    float32)."""
    batch: int = 16
    about: dict[str, Any] | None = None
    """What else must be the same for the job to be gone on with; no worker is told."""


class Done(NamedTuple):
    """What became of a part."""

    number: int
    pictures: int
    bad: int


def part_file(out: str, number: int) -> Path:
    """Where the rows of a part are when it is done."""
    return Path(out) / f"part-{number:08d}.parquet"


def make_work(job: Job) -> Work:
    """Loads the model, once per process."""
    return look_up(job.work)(**job.settings)


def do_part(job: Job, number: int, part: Part, work: Work, reader: PictureReader | None = None) -> Done:
    """Work on a part that is not done, and write its file. A part that is done is only counted. `reader`:
    for those who do several parts, so that each does not start another process."""
    import pyarrow.parquet as parquet

    target = part_file(job.out, number)
    if target.exists():
        problems = parquet.read_table(target, columns=["problem"]).column("problem").to_pylist()
        return Done(number, len(problems), sum(problem is not None for problem in problems))
    if reader is None:
        with PictureReader() as reader:
            return _do(job, number, part, work, reader)
    return _do(job, number, part, work, reader)


def _do(job: Job, number: int, part: Part, work: Work, reader: PictureReader) -> Done:
    journal = _Journal(Path(job.out) / "journal" / f"part-{number}.json")
    rows: list[dict[str, Any]] = []
    waiting: list[Input] = []
    for place, given in enumerate(read_part(part)):
        alone = journal.is_suspect(place)
        if waiting and (alone or len(waiting) == job.batch):
            rows += _worked(waiting, len(rows), journal, work, reader)
            waiting = []
        waiting.append(given)
        if alone:
            rows += _worked(waiting, len(rows), journal, work, reader)
            waiting = []
    if waiting:
        rows += _worked(waiting, len(rows), journal, work, reader)
    _write(part_file(job.out, number), rows, job.columns)
    journal.close()
    return Done(number, len(rows), sum(row["problem"] is not None for row in rows))


def _worked(
    some: Sequence[Input], first: int, journal: _Journal, work: Work, reader: PictureReader
) -> list[dict[str, Any]]:
    """One row per picture; those that cannot be read have a `problem` and nothing else."""
    rows: list[dict[str, Any]] = [
        {"image": given.name, "sha256": _digest(given.content), "problem": given.problem or None}
        for given in some
    ]
    if len(some) == 1 and journal.deaths(first) >= TRIES:
        rows[0]["problem"] = f"{some[0].name}: its process ended {TRIES} times while it was worked on"
        return rows
    journal.begin(first, len(some))
    pictures, owners = [], []
    for row, given in zip(rows, some, strict=True):
        if given.content is None:
            row["problem"] = given.problem or f"{given.name}: cannot be read"
            continue
        try:
            pictures.append(reader.open(given.content, given.name))
            owners.append(row)
        except PictureError as error:
            row["problem"] = str(error)
    if pictures:
        names = [given.name for row, given in zip(rows, some, strict=True) if row["problem"] is None]
        for row, said in zip(owners, work(pictures, names), strict=True):
            row.update(said)
    return rows


def _write(target: Path, rows: Sequence[dict[str, Any]], columns: dict[str, str]) -> None:
    import pyarrow as arrow
    import pyarrow.parquet as parquet

    kinds = {"string": arrow.string(), "double": arrow.float64(), "bool": arrow.bool_()}
    kinds |= {"floats": arrow.list_(arrow.float32()), "strings": arrow.list_(arrow.string())}
    kinds |= {"bytes": arrow.binary()}
    names = {"image": "string", "sha256": "string", "problem": "string", **columns}
    schema = arrow.schema([(name, kinds[kind]) for name, kind in names.items()])
    # Names of files may hold bytes that are no UTF-8, and Parquet holds text.
    plain = [{name: _text(row.get(name)) for name in names} for row in rows]
    # Hidden by its dot: whoever reads all of the folder's Parquet takes no part that a killed worker left.
    aside = target.with_name(f".{target.name}.{id(rows)}")
    try:
        parquet.write_table(arrow.Table.from_pylist(plain, schema=schema), aside)
        aside.replace(target)
    finally:
        aside.unlink(missing_ok=True)


def _digest(content: bytes | None) -> str | None:
    return None if content is None else hashlib.sha256(content).hexdigest()


def _text(value: Any) -> Any:
    if isinstance(value, list):
        return [_text(one) for one in value] if value and isinstance(value[0], str) else value
    return value.encode("utf-8", "backslashreplace").decode() if isinstance(value, str) else value


class _Journal:
    """Which pictures of a part were in hand when its process ended, over all processes that tried."""

    def __init__(self, path: Path) -> None:
        self._path = path
        path.parent.mkdir(parents=True, exist_ok=True)
        state = json.loads(path.read_text()) if path.exists() else {"deaths": {}, "hand": None}
        self._deaths: dict[str, int] = state["deaths"]
        if state["hand"] is not None:
            first, count = state["hand"]
            for place in range(first, first + count):
                # One that was worked on among others is only suspected: it is worked on alone from now on.
                self._deaths[str(place)] = self._deaths.get(str(place), 0) + (count == 1)

    def is_suspect(self, place: int) -> bool:
        """Whether a picture is to be worked on alone."""
        return str(place) in self._deaths

    def deaths(self, place: int) -> int:
        """How many processes ended while this picture was worked on alone."""
        return self._deaths.get(str(place), 0)

    def begin(self, first: int, count: int) -> None:
        """These pictures are in hand from now on."""
        write_text(self._path, json.dumps({"deaths": self._deaths, "hand": [first, count]}))

    def close(self) -> None:
        """The part is done."""
        self._path.unlink(missing_ok=True)
