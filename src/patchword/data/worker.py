"""A process that decodes pictures for another one: `python -m patchword.data.worker`.

It reads requests from standard input and writes answers to standard output, one after the other:

    -> {"bounds": {...}, "bytes": n} on a line, then n bytes of a picture file
    <- {"held": n} on a line: what decoding will hold
    -> an empty line: go on
    <- {"size": [w, h], "stored": [w, h]} on a line, then the RGB pixels row by row

In place of either answer there may be {"error": "PictureError" or a kind of it, "message": "..."}. Whoever
started it may end it at any moment, and does so when a picture takes too long: decoders are C code that no
thread can interrupt. It ends by itself when its standard input is closed, and a system that can do so keeps
it from holding more memory than its picture was allowed.
"""

from __future__ import annotations

import json
import signal
import sys
from typing import BinaryIO

from patchword.data.decoding import DecodedPicture, begin
from patchword.data.headers import Bounds
from patchword.errors import PictureError

_SLACK = 128 * 2**20
"""Memory beside the picture: the file, stacks of threads, tables of decoders."""


def serve(requests: BinaryIO, answers: BinaryIO) -> None:
    """Answer until there are no more requests."""
    while line := requests.readline():
        wanted = json.loads(line)
        content = requests.read(wanted["bytes"])
        try:
            decoded = _decoded(content, Bounds(**wanted["bounds"]), requests, answers)
        except PictureError as error:
            said = {"error": type(error).__name__, "message": str(error)}
            answers.write(json.dumps(said).encode() + b"\n")
        else:
            size = {"size": decoded.picture.size, "stored": (decoded.width, decoded.height)}
            answers.write(json.dumps(size).encode() + b"\n")
            answers.write(decoded.picture.tobytes())
        answers.flush()


def _decoded(content: bytes, bounds: Bounds, requests: BinaryIO, answers: BinaryIO) -> DecodedPicture:
    with begin(content, "the upload", bounds) as opening:
        _bound_memory(opening.held + len(content) + _SLACK)
        answers.write(json.dumps({"held": opening.held}).encode() + b"\n")
        answers.flush()
        requests.readline()
        return opening.finish()


def _bound_memory(more: int) -> None:
    """Let the process hold so many bytes more than now, where the system can bound that (Linux)."""
    try:
        import resource

        with open("/proc/self/status", encoding="ascii") as status:
            held = next(int(line.split()[1]) for line in status if line.startswith("VmData:"))
        resource.setrlimit(resource.RLIMIT_DATA, (held * 1024 + more, resource.RLIM_INFINITY))
    except (ImportError, OSError, StopIteration, ValueError):  # macOS and Windows: the deadline remains
        return


if __name__ == "__main__":
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl+C reaches all processes of a terminal
    try:
        serve(sys.stdin.buffer, sys.stdout.buffer)
    except BrokenPipeError:  # whoever asked is gone
        sys.exit(0)
