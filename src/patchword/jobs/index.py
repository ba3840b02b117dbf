"""An index whose vectors are made on a cluster: workers embed what is new, then one process writes the index.

folder -> what the index does not know -> jobs/cluster.py -> PARTS/part-N.parquet -> search/index.py

PARTS is a folder that all workers see. Killed at any moment, the same call goes on: PARTS holds the list of
what was new when it was begun, and is emptied when the index has all of it.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np

from patchword.errors import ConfigError
from patchword.files import write_text
from patchword.jobs.cluster import run_job
from patchword.jobs.part import Job, part_file
from patchword.jobs.sources import plan
from patchword.search.index import IndexReport, update_index, what_waits
from patchword.search.records import IndexModel

WORK = "tasks.retrieve.many:Vectors"
COLUMNS = {"vector": "floats"}
_LIST = "new.txt"


def index_on_cluster(
    folder: Path,
    out: str,
    parts: Path,
    model: IndexModel,
    cluster: str,
    progress: Callable[[int, int, int], None],
    batch: int = 32,
    allow_empty: bool = False,
) -> IndexReport:
    """Bring an index up to a folder; `model` as for `update_index`, whose `name` the workers load it by;
    `progress` and `cluster` as for `run_job`.

    Raises:
        ConfigError: PARTS holds something else, or no such cluster can be reached.
        StoreError: as `update_index`.
    """
    listed = parts / _LIST
    if not listed.exists():
        if parts.exists() and any(parts.iterdir()):
            raise ConfigError(f"--parts {parts} is a folder of something else: name an empty or a new one")
        waiting = [os.fsdecode(path) for path in what_waits(folder, out, model, allow_empty)]
        parts.mkdir(parents=True, exist_ok=True)
        # A name with a line break cannot stand in a list: such a picture is embedded when the index is
        # written.
        write_text(listed, "".join(f"{path}\n" for path in waiting if path.isprintable()))
    given = None
    if listed.stat().st_size:
        job = Job(str(parts / "vectors"), WORK, {"model": model.name, "device": None}, COLUMNS, batch)
        run_job([str(listed)], job, cluster, progress)
        given = _Vectors(job.out, len(plan([str(listed)])))
    report = update_index(folder, out, model, allow_empty=allow_empty, given=given)
    shutil.rmtree(parts)
    return report


class _Vectors:
    """The vectors of a job by the SHA-256 of their files, in a file that is mapped into memory."""

    def __init__(self, out: str, parts: int) -> None:
        import pyarrow.parquet as parquet

        self._rows: dict[bytes, int] = {}
        self._problems: dict[bytes, str] = {}
        self._vectors_NE: np.ndarray | None = None
        width, path = 0, Path(out) / "vectors.f4"
        with open(path, "wb") as file:
            for number in range(parts):
                table = parquet.read_table(part_file(out, number), columns=["sha256", "problem", "vector"])
                for row in table.to_pylist():
                    key = bytes.fromhex(row["sha256"] or "")
                    if row["problem"] is not None:
                        self._problems[key] = row["problem"]
                    elif key not in self._rows:
                        vector_E = np.asarray(row["vector"], dtype="<f4")
                        width = len(vector_E)
                        file.write(vector_E.tobytes())
                        self._rows[key] = len(self._rows)
        if self._rows:
            self._vectors_NE = np.memmap(path, dtype="<f4", mode="r", shape=(len(self._rows), width))

    def __call__(self, content: bytes) -> tuple[np.ndarray | None, str] | None:
        """See `search.update.KnownVectors`."""
        if content in self._problems:
            return None, self._problems[content]
        row = self._rows.get(content)
        if row is None or self._vectors_NE is None:
            return None
        vector_E = np.array(self._vectors_NE[row], dtype=np.float32)
        return vector_E / max(float(np.linalg.norm(vector_E)), 1e-12), ""
