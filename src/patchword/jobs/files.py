"""The pictures of a data set as a job, whose rows one process then puts together: `predict`, `features`.

files of a data set -> jobs/cluster.py -> PARTS/part-N.parquet -> one row per file, in their order

PARTS is a folder that all workers see. Killed at any moment, the same command goes on; PARTS is emptied when
what it was for is written.
"""

from __future__ import annotations

import shutil
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from patchword.data.store import fingerprint, picture_files
from patchword.errors import ConfigError
from patchword.jobs.cluster import run_parts
from patchword.jobs.part import Job, part_file
from patchword.jobs.sources import paths_in_parts
from patchword.log import progress


class Elsewhere(NamedTuple):
    """Where workers are, and where they leave what they made."""

    cluster: str
    """As for `run_job`."""
    parts: Path
    """An empty or a new folder, or that of the same command."""


class FileRows:
    """What workers made of some files."""

    def __init__(self, files: Sequence[str], out: str, parts: int) -> None:
        self.files, self.out, self.parts = files, out, parts

    def read(self, columns: Sequence[str]) -> Iterator[tuple[str, dict[str, Any]]]:
        """Every file with its row, in order; a row has `problem`, which is None where the picture was read,
        and these columns."""
        import pyarrow.parquet as parquet

        files = iter(self.files)
        for number in range(self.parts):
            table = parquet.ParquetFile(part_file(self.out, number))
            for batch in table.iter_batches(batch_size=64, columns=["problem", *columns]):
                yield from ((next(files), row) for row in batch.to_pylist())

    def remove(self) -> None:
        """What the rows were for is written."""
        shutil.rmtree(self.out)


def rows_of_files(images: Path, files: Sequence[str], job: Job, where: Elsewhere) -> FileRows:
    """Let workers work on the files of a data set, each once, and wait for them; `job.out` is not used.

    Raises:
        ConfigError: PARTS holds something else, no such cluster can be reached, or the pictures changed while
            they were worked on.
    """
    paths = [str(images.resolve() / file) for file in files]
    parts = paths_in_parts(paths)
    there = _versions(images, files)
    about = {**(job.about or {}), "pictures": there}
    job = job._replace(out=str(where.parts.resolve()), about=about)
    with progress(sys.stderr.isatty()) as bar:
        task = bar.add_task("parts", total=None, status="")
        run_parts(
            parts,
            job,
            where.cluster,
            lambda done, total, pictures: bar.update(
                task, completed=done, total=total, status=f"{pictures} pictures"
            ),
        )
    if _versions(images, files) != there:
        raise ConfigError(
            f"{images}: pictures changed while workers looked at them: remove {where.parts} and begin again"
        )
    return FileRows(files, job.out, len(parts))


def _versions(images: Path, files: Sequence[str]) -> str:
    """A fingerprint of the names, sizes and times of the pictures that there are."""
    return fingerprint(picture_files(images, [name for name in files if (images / name).exists()]))


def elsewhere(cluster: str | None, parts: Path | None) -> Elsewhere:
    """Raises ConfigError where one of them is missing."""
    if cluster is None or parts is None:
        raise ConfigError("--cluster goes with --parts, a folder that all workers see: give both, or neither")
    return Elsewhere(cluster, parts)


def complain(problem: str) -> None:
    """One line on standard error."""
    print(f"patchword: {' '.join(problem.split())}", file=sys.stderr)


def anywhere(name: str | Path) -> str:
    """A model or a file by a name that a worker in another folder understands too."""
    return str(Path(name).resolve()) if Path(name).exists() else str(name)
