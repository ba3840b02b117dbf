"""A job over many pictures on the workers of Ray: this machine's, or those of a cluster.

source -> jobs/sources.py (parts) -> Ray: actors that load the model once -> jobs/part.py -> OUT

Ray schedules, moves what failed to another worker, and grows the cluster where that is configured. OUT must
be a folder that all workers see. `OUT/job.json` says what the job is, so that a second call with the same
command goes on, and one with another command is refused.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

from patchword.data.isolated import PictureReader
from patchword.errors import ConfigError, MissingExtra
from patchword.files import write_json
from patchword.heap import keep
from patchword.jobs.part import Done, Job, do_part, make_work, part_file
from patchword.jobs.sources import Part, plan
from patchword.lookup import import_torch

_STORE = 256 * 2**20
"""Bytes of shared memory that Ray takes on this machine."""


class JobReport(NamedTuple):
    """What a job did."""

    parts: int
    pictures: int
    bad: int


def run_job(
    names: Iterable[str],
    job: Job,
    cluster: str,
    progress: Callable[[int, int, int], None] = lambda done, parts, pictures: None,
    workers: int | None = None,
) -> JobReport:
    """Work on all parts that are not done, and wait for them.

    Args:
        cluster: `auto` (the cluster that this machine belongs to), `local` (this machine's cores), or
            `ray://HOST:PORT`.
        progress: called with (parts done, all parts, pictures of this call).
        workers: processes; absent: one per GPU, or without any one per core.
    Raises:
        ConfigError: OUT holds another job, or no such cluster can be reached.
        MissingExtra: Ray is not installed.
    """
    return run_parts(plan(names), job, cluster, progress, workers)


def run_parts(
    parts: list[Part],
    job: Job,
    cluster: str,
    progress: Callable[[int, int, int], None] = lambda done, parts, pictures: None,
    workers: int | None = None,
) -> JobReport:
    """`run_job` over parts that are known."""
    _begin(job, parts)
    pending = [number for number in range(len(parts)) if not part_file(job.out, number).exists()]
    progress(len(parts) - len(pending), len(parts), 0)
    pictures = 0
    if pending:
        finished = len(parts) - len(pending)
        for done in _on_ray(job, parts, pending, cluster, workers):
            finished, pictures = finished + 1, pictures + done.pictures
            progress(finished, len(parts), pictures)
    return counted(job.out, len(parts))


def counted(out: str, parts: int) -> JobReport:
    """What is in the output of a job. Raises ConfigError where a part is missing."""
    import pyarrow.parquet as parquet

    pictures = bad = 0
    for number in range(parts):
        file = parquet.ParquetFile(part_file(out, number))
        pictures += file.metadata.num_rows
        bad += file.metadata.num_rows - file.read(columns=["problem"]).column("problem").null_count
    return JobReport(parts, pictures, bad)


def problems(out: str, parts: int) -> Iterator[str]:
    """Why pictures could not be worked on, in the order of the source."""
    import pyarrow.parquet as parquet

    for number in range(parts):
        column = parquet.read_table(part_file(out, number), columns=["problem"]).column("problem")
        yield from (reason for reason in column.to_pylist() if reason is not None)


def _begin(job: Job, parts: list[Part]) -> None:
    """Record what the job is, or compare it with what was recorded."""
    digest = hashlib.sha256(json.dumps(parts).encode("utf-8", "surrogatepass")).hexdigest()
    facts = {"format": 1, "work": job.work, "settings": job.settings, "columns": job.columns}
    facts |= {"parts": len(parts), "source": digest} | ({} if job.about is None else {"about": job.about})
    facts = json.loads(json.dumps(facts))  # as the file gives them back: without tuples
    path = Path(job.out) / "job.json"
    if not path.exists():
        if Path(job.out).is_dir() and any(Path(job.out).iterdir()):
            raise ConfigError(f"{job.out} is a folder of something else: name an empty or a new one")
        Path(job.out).mkdir(parents=True, exist_ok=True)
        write_json(path, facts, indent=1)
        return
    held = json.loads(path.read_text(encoding="utf-8"))
    different = [name for name in facts if held.get(name) != facts[name]]
    if different:
        raise ConfigError(
            f"{job.out} holds a job with other {', '.join(different)}: repeat the command that it was begun "
            "with over the same pictures, or name another folder"
        )


def _on_ray(
    job: Job, parts: list[Part], pending: list[int], cluster: str, workers: int | None
) -> Iterator[Done]:
    ray = load_ray()
    from ray.util import ActorPool

    connect(ray, cluster)
    try:
        gpus = int(ray.cluster_resources().get("GPU", 0))
        count = workers or gpus or max(1, int(ray.cluster_resources().get("CPU", 1)))
        count = min(count, len(pending))
        # One that ends is started again, on another machine where its own is gone, and its part begun anew.
        wanted = {"num_cpus": 1, "num_gpus": 1 if gpus else None, "max_restarts": -1, "max_task_retries": -1}
        worker = ray.remote(**wanted)(Worker)
        pool = ActorPool([worker.remote(job._asdict()) for _ in range(count)])
        yield from pool.map_unordered(lambda one, number: one.do.remote(number, parts[number]), pending)
    finally:
        ray.shutdown()


class Worker:
    """An actor: the model is loaded when it starts, and parts come one after the other. The process that
    decodes for it ends with it.

    Ray gives it one core, and with it one thread for numerical libraries.
    """

    def __init__(self, job: dict[str, Any]) -> None:
        import_torch()
        keep()
        self._job = Job(**job)
        self._work = make_work(self._job)
        self._reader = PictureReader()

    def do(self, number: int, part: Part) -> Done:
        """One part."""
        return do_part(self._job, number, part, self._work, self._reader)


def load_ray() -> Any:
    """Raises MissingExtra where Ray is not installed."""
    os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")
    try:
        import ray
    except ImportError as error:
        raise MissingExtra("--cluster needs Ray: pip install 'patchword[cluster]'") from error
    return ray


def connect(ray: Any, cluster: str, least_cores: int | None = None) -> None:
    """Raises ConfigError for an address that cannot be reached. `least_cores`: of a local one, which may be
    more than there are."""
    if cluster not in ("auto", "local") and not cluster.startswith("ray://"):
        raise ConfigError(f"--cluster {cluster}: expected auto, local or ray://HOST:PORT")
    quiet = {"log_to_driver": False, "logging_level": "ERROR"}
    try:
        if cluster == "local":  # rows between processes are some numbers: the store of objects may be small
            ray.init(
                address=cluster,
                num_cpus=least_cores,
                include_dashboard=False,
                object_store_memory=_STORE,
                **quiet,
            )
        else:
            ray.init(address=cluster, **quiet)
    except Exception as error:  # Ray raises a bare one where this machine is too busy to start it in 30 s
        said = " ".join(str(error).split())[:200]
        raise ConfigError(f"--cluster {cluster}: no such cluster can be reached ({said})") from error
