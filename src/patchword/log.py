"""Logs of a run: one JSON object per line in metrics.jsonl, and a progress bar on the terminal."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)


class MetricsLog:
    """Appends events to metrics.jsonl.

    `length` is the file's length in bytes at the checkpoint from which a run resumes; everything after it is
    cut off. None starts an empty file.
    """

    def __init__(self, path: Path, length: int | None) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        # Not buffered: what could not be written is not tried again when the file is closed.
        self._file = open(path, "ab", buffering=0)  # noqa: SIM115 - closed by `close`
        self._file.truncate(0 if length is None else length)

    def write(self, event: dict[str, Any]) -> None:
        """Appends one event as a line of JSON and flushes it."""
        line = json.dumps(event).encode() + b"\n"
        while line:
            line = line[self._file.write(line) :]

    @property
    def length(self) -> int:
        """Bytes written so far, after they have reached the disk."""
        os.fsync(self._file.fileno())
        return os.fstat(self._file.fileno()).st_size

    def close(self) -> None:
        """Closes the file."""
        self._file.close()


def console(width: int | None = None, stderr: bool = False) -> Console:
    """A console that prints text as it is: brackets in the name of a file or a class are no markup, words
    between colons no emoji, and numbers have no colours.
    """
    return Console(width=width, stderr=stderr, markup=False, emoji=False, highlight=False)


def progress(enabled: bool = True, vanishes: bool = False) -> Progress:
    """A progress bar on standard error: done, total, elapsed and remaining time, and a free `status` text."""
    return Progress(
        TextColumn("{task.description}", markup=False),
        BarColumn(bar_width=24),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        TextColumn("left"),
        TimeRemainingColumn(),
        TextColumn("{task.fields[status]}", markup=False),
        console=console(stderr=True),
        disable=not enabled,
        transient=vanishes,
    )
