"""Pictures decoded in a process of their own (`worker.py`), which can be ended.

Decoders are C code that no thread can interrupt, and that may take minutes over a small file or break down on
a damaged one. Commands that read many files open them by a `PictureReader`: such a picture is one that cannot
be read, like any other, and the next one is decoded by a new process. The service has `serve/decoders.py`.
"""

from __future__ import annotations

import json
import math
import os
import subprocess
import sys
import time
import weakref
from dataclasses import asdict
from pathlib import Path
from threading import Event, Thread
from typing import Any, NamedTuple

import numpy as np
import psutil
from PIL import Image

from patchword.data.headers import Bounds
from patchword.data.pictures import Picture, name_of, open_picture, read_content
from patchword.errors import NotAPicture, PictureError, PictureTooLarge

SECONDS = 60.0
"""Processor time that one picture may take to be decoded: a photograph of a hundred megapixels takes one or
two seconds."""

_PATIENCE = 20
"""Seconds on the clock for each second of processor time, at most: a run that is paused (Ctrl+Z, a scheduler)
or starved must not take a photograph for a bad one."""

_ENVIRONMENT = {
    **{"OPENBLAS_NUM_THREADS": "1", "OMP_NUM_THREADS": "1"},
    # glibc would keep the memory of a large picture for the next one.
    **{"MALLOC_MMAP_THRESHOLD_": str(2**18), "MALLOC_TRIM_THRESHOLD_": str(2**20)},
}

_ERRORS = {kind.__name__: kind for kind in (PictureError, NotAPicture, PictureTooLarge)}


class Upright(NamedTuple):
    """A decoded picture, perhaps reduced, and the size at which it is stored."""

    picture: Image.Image
    width: int
    height: int


class DecoderGone(Exception):
    """The process is gone."""


class Decoder:
    """One process and the pipes to it. Its methods block; `kill` may be called from another thread."""

    def __init__(self, yielding: int = 0) -> None:
        """`yielding`: steps by which its priority is lower."""
        package = str(Path(__file__).resolve().parents[2])
        paths = os.pathsep.join([package, *(path for path in sys.path if path)])
        self.started = False
        """Whether it has answered."""
        self._process = subprocess.Popen(
            [sys.executable, "-S", "-m", "patchword.data.worker", *([str(yielding)] if yielding else [])],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            env={**os.environ, **_ENVIRONMENT, "PYTHONPATH": paths},
        )
        assert self._process.stdin is not None and self._process.stdout is not None  # both are pipes
        self._stdin, self._stdout = self._process.stdin, self._process.stdout
        weakref.finalize(self, _end, self._process)  # for whoever keeps one without a `with`

    def begin(self, content: bytes | bytearray, name: str, bounds: Bounds) -> int:
        """Send a picture; the bytes that decoding it will hold. `finish` or `forget` must follow. Raises
        `PictureError`."""
        head = json.dumps({"bounds": asdict(bounds), "bytes": len(content), "name": name}).encode()
        self._send(head + b"\n", content)
        return self._answer()["held"]

    def finish(self) -> Upright:
        """Have it decoded. Raises `PictureError`."""
        self._send(b"\n")
        answer = self._answer()
        width, height = answer["size"]
        pixels = self._stdout.read(3 * width * height)
        if len(pixels) < 3 * width * height:
            raise DecoderGone
        return Upright(Image.frombytes("RGB", (width, height), pixels), *answer["stored"])

    def forget(self) -> None:
        """Do not have it decoded."""
        self._send(b"forget\n")

    def _send(self, *parts: bytes | bytearray) -> None:
        try:
            for part in parts:
                self._stdin.write(part)
            self._stdin.flush()
        except (OSError, ValueError) as error:  # ValueError: closed by another thread
            raise DecoderGone from error

    def _answer(self) -> dict[str, Any]:
        line = self._stdout.readline()
        if not line.endswith(b"\n"):
            raise DecoderGone
        self.started = True
        answer = json.loads(line)
        if "error" in answer:
            raise _ERRORS[answer["error"]](answer["message"])
        return answer

    def processor_seconds(self) -> float:
        """Processor time that the process has taken since it began; infinite where it is gone."""
        try:
            times = psutil.Process(self._process.pid).cpu_times()
        except psutil.Error:
            return math.inf
        return times.user + times.system

    def kill(self) -> None:
        """End the process, whatever it does; a thread that waits for it is told."""
        self._process.kill()

    def close(self) -> None:
        """After `kill`, when no thread waits for it any more."""
        _end(self._process)


def _end(process: subprocess.Popen) -> None:
    """End a process and let go of the pipes to it."""
    process.kill()
    process.wait()
    for pipe in (process.stdin, process.stdout):
        try:
            if pipe is not None:
                pipe.close()
        except OSError:  # what was not yet written to a process that is gone
            continue


class PictureReader:
    """Opens pictures as `open_picture` does, each in a process that is ended after `seconds` of work.

    To be used in a `with`, or kept by what reads again and again, with which it ends; from one thread. Pillow
    images and arrays are already decoded, and stay in this process."""

    def __init__(
        self,
        seconds: float = SECONDS,
        bounds: Bounds | None = None,
        *,
        allow_urls: bool = False,
        isolated: bool = True,
    ) -> None:
        """`isolated` False opens by `open_picture`: for a single picture a process is not worth its start."""
        self._seconds, self._bounds, self._allow_urls = seconds, bounds or Bounds(), allow_urls
        self._isolated = isolated
        self._decoder: Decoder | None = None

    def open(self, source: Picture, name: str | None = None) -> Image.Image:
        """Opens as `open_picture` does. Raises `PictureError`, also where the picture takes too long, or its
        decoder breaks down."""
        if isinstance(source, (np.ndarray, Image.Image)):
            return open_picture(source, name, self._bounds)
        if not self._isolated:
            return open_picture(source, name, self._bounds, allow_urls=self._allow_urls)
        name = name or name_of(source)
        return self._decoded(read_content(source, name, self._bounds, self._allow_urls), name)

    def _decoded(self, content: bytes, name: str) -> Image.Image:
        decoder, late, over = self._decoder or Decoder(), Event(), Event()
        self._decoder = decoder
        before, last = decoder.processor_seconds(), time.monotonic() + _PATIENCE * self._seconds

        def end() -> None:
            """Waits until the limit of processor time may have been reached, and looks whether it was."""
            left = self._seconds
            while not over.wait(max(left, _LOOK_AGAIN)):
                left = self._seconds - (decoder.processor_seconds() - before)
                if left <= 0 or time.monotonic() > last:
                    late.set()
                    decoder.kill()
                    return

        watch = Thread(target=end, daemon=True)
        watch.start()
        try:
            decoder.begin(content, name, self._bounds)
            return decoder.finish().picture
        except DecoderGone as error:
            self._replace()
            found = f"decoding takes more than {self._seconds:g} seconds" if late.is_set() else _BROKE_DOWN
            raise PictureError(f"{name}: {found}. Save it again, or leave it out.") from error
        except BaseException as error:
            if not isinstance(error, PictureError):  # Ctrl+C: it may be in the middle of an answer
                self._replace()
            raise
        finally:
            over.set()
            watch.join()
            if late.is_set():
                self._replace()

    def _replace(self) -> None:
        """End the process; another one is started when it is needed."""
        if self._decoder is not None:
            self._decoder.kill()
            self._decoder.close()
            self._decoder = None

    def __enter__(self) -> PictureReader:
        return self

    def __exit__(self, *_: object) -> None:
        self._replace()


_LOOK_AGAIN = 0.02

_BROKE_DOWN = "its decoder broke down, as it does on damaged files and where memory is short"
