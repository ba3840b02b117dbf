"""The table of captions that a call begins and a later one goes on with: CSV, one row per picture, written as
they come."""

from __future__ import annotations

import csv
import os
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TextIO

from patchword.errors import ConfigError
from patchword.tasks.caption.result import Caption

COLUMNS = ["image", "caption", "score", "model"]
"""The header, by which a table of ours is told from one that a person wrote."""


class CaptionTable:
    """Appends rows one by one, each flushed, so that an interrupted call loses at most the picture it was at.

    Names of pictures are written as the system has them, whatever their bytes.
    """

    def __init__(self, path: Path, model: str, overwrite: bool = False) -> None:
        """Go on with the table of an earlier call, whose pictures are in `done`, or begin one; with
        `overwrite` anew, whatever is there.

        Raises ConfigError where the file is something else, or holds captions of another model: neither is
        touched.
        """
        self._path, self._model, self._anew = path, model, overwrite
        self._file: TextIO | None = None
        self.done: set[str] = set()
        if not overwrite and path.exists() and path.stat().st_size:
            self.done = self._pictures_there()

    def _pictures_there(self) -> set[str]:
        with open(self._path, encoding="utf-8", errors="surrogateescape", newline="") as file:
            header, *rows = list(csv.reader(file)) or [[]]
        if header != COLUMNS:
            raise ConfigError(
                f"--out {self._path} exists and was not written by `patchword caption` (its first line is "
                f"{','.join(header)[:60]!r}): name another file; --overwrite replaces it"
            )
        # The last row may have been cut by an interruption, and then lacks its model, or the end of it.
        others = Counter(row[3] for row in rows[:-1] if len(row) == 4 and row[3] != self._model)
        if rows and len(rows[-1]) == 4 and self._ends_with_a_line() and rows[-1][3] != self._model:
            others[rows[-1][3]] += 1
        if others:
            named = ", ".join(f"{count} by {model!r}" for model, count in others.items())
            raise ConfigError(
                f"--out {self._path} holds captions of another model ({named}) and --model is "
                f"{self._model!r}: name "
                "another file; --overwrite replaces it"
            )
        return {row[0] for row in rows if len(row) == 4 and row[3] == self._model}

    def _ends_with_a_line(self) -> bool:
        return self._path.read_bytes().endswith(b"\n")

    def write(self, path: Path | str, caption: Caption) -> None:
        """One row more; the file is opened, or begun, with the first one. Raises OSError with its name."""
        with self._named():
            if self._file is None:
                self._file = self._open()
                self._writer = csv.writer(self._file)
                if self._file.tell() == 0:
                    self._writer.writerow(COLUMNS)
            self._writer.writerow([str(path), caption.text, f"{caption.log_probability:.4f}", self._model])
            self._file.flush()

    def _open(self) -> TextIO:
        is_new = self._anew or not self._path.exists() or self._path.stat().st_size == 0
        if not is_new and not self._ends_with_a_line():
            self._mend_last_row()
        return open(  # noqa: SIM115 - closed by `close`
            self._path, "w" if is_new else "a", encoding="utf-8", errors="surrogateescape", newline=""
        )

    def _mend_last_row(self) -> None:
        """Give a whole last row its line end; take off one that was interrupted, it is written again."""
        content = self._path.read_bytes()
        kept = content[: content.rfind(b"\n") + 1]
        last = next(csv.reader([content[len(kept) :].decode("utf-8", "surrogateescape")]), [])
        whole = len(last) == 4 and last[3] == self._model
        # In place: a copy would need space, which there may be none of.
        if whole:
            with open(self._path, "ab") as file:
                file.write(b"\r\n")
        else:
            os.truncate(self._path, len(kept))

    def close(self) -> None:
        """Nothing more is written. Raises OSError with the file's name where a row is left that cannot be."""
        if self._file is not None:
            with self._named():
                self._file.close()

    @contextmanager
    def _named(self) -> Iterator[None]:
        """A full disk shows in a write, whose error does not say to which file."""
        try:
            yield
        except OSError as error:
            if error.filename is None:
                error.filename = str(self._path)
            raise
