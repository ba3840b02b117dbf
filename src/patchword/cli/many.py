"""`--cluster`: a command over many pictures on the workers of Ray, with Parquet files as its output."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from patchword.cli.outputs import complain
from patchword.errors import ConfigError, counted

if TYPE_CHECKING:
    from patchword.jobs.part import Job

Cluster = Annotated[
    str | None,
    typer.Option(
        "--cluster",
        help="Work on Ray: auto, local (all cores here) or ray://HOST:PORT; --out is then a folder of "
        "Parquet files.",
    ),
]
Workers = Annotated[
    str | None,
    typer.Option(
        "--cluster", help="Let workers of Ray look: auto, local (all cores here) or ray://HOST:PORT."
    ),
]
Parts = Annotated[
    Path | None,
    typer.Option(
        "--parts",
        help="With --cluster: folder that all workers see, for what they make until --out is written.",
    ),
]
_SHOWN = 5


def on_cluster(names: Sequence[str], job: Job, cluster: str) -> int:
    """Run a job, or go on with it; prints what it did and returns the exit status."""
    from patchword.jobs.cluster import problems, run_job
    from patchword.log import progress

    with progress(sys.stderr.isatty()) as bar:
        task = bar.add_task("parts", total=None, status="")
        report = run_job(
            names,
            job,
            cluster,
            lambda done, parts, pictures: bar.update(
                task, completed=done, total=parts, status=counted(pictures, "picture")
            ),
        )
    bad = f", {report.bad} could not be read (column `problem`)" if report.bad else ""
    print(f"{job.out}: {counted(report.pictures, 'picture')} in {counted(report.parts, 'Parquet file')}{bad}")
    for shown, reason in enumerate(problems(job.out, report.parts) if report.bad else ()):
        if shown == _SHOWN:
            break
        complain(reason)
    return 1 if report.bad else 0


def make_job(
    out: Path | None, work: str, settings: dict[str, Any], columns: dict[str, str], batch: int
) -> Job:
    """Raises ConfigError where no folder for the output is named."""
    from patchword.jobs.part import Job

    if out is None:
        raise ConfigError("--cluster writes Parquet files: name a folder for them with --out")
    if out.is_file():
        raise ConfigError(f"--out {out} is a file, and --cluster writes a folder of Parquet files")
    return Job(str(out.resolve()), work, settings, columns, batch)


def check_together(cluster: str | None, parts: Path | None) -> None:
    """Raises ConfigError where --cluster is given without --parts, or the other way round."""
    if (cluster is None) != (parts is None):
        raise ConfigError("--cluster goes with --parts, a folder that all workers see: give both, or neither")


def refuse_with_cluster(**given: object) -> None:
    """Raises ConfigError for an option that has no meaning on a cluster."""
    for name, value in given.items():
        if value:
            raise ConfigError(
                f"--{name.replace('_', '-')} is for pictures on this machine: leave out --cluster"
            )
