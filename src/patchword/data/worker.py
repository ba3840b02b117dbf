"""A process that decodes pictures for another one: `python -m patchword.data.worker [STEPS]`, at a
priority that is so many steps lower where the system has priorities.

It reads requests from standard input and writes answers to standard output, one after the other:

    -> {"bounds": {...}, "bytes": n, "name": "..."} on a line, then n bytes of a picture file
    <- {"held": n} on a line: what decoding will hold
    -> an empty line: go on; or "forget": the next request follows
    <- {"size": [w, h], "stored": [w, h]} on a line, then the RGB pixels row by row

In place of either answer there may be {"error": "PictureError" or a kind of it, "message": "..."}. Whoever
started it may end it at any moment, and does so when a picture takes too long: decoders are C code that no
thread can interrupt. It ends by itself when its standard input is closed, and a system that can do so keeps
it from holding more memory than its picture was allowed.
"""

from __future__ import annotations

import json
import os
import signal
import sys
from typing import BinaryIO

from patchword.data.decoding import DecodedPicture, begin, decode
from patchword.data.headers import Bounds, is_raw
from patchword.errors import PictureError
from patchword.heap import trim

_SLACK = 128 * 2**20
"""Memory beside the picture: the file, stacks of threads, tables of decoders."""


def serve(requests: BinaryIO, answers: BinaryIO) -> None:
    """Answer until there are no more requests."""
    while line := requests.readline():
        wanted = json.loads(line)
        content = requests.read(wanted["bytes"])
        try:
            decoded = _decoded(content, wanted["name"], Bounds(**wanted["bounds"]), requests, answers)
        except PictureError as error:
            said = {"error": type(error).__name__, "message": str(error)}
            answers.write(json.dumps(said).encode() + b"\n")
        else:
            if decoded is not None:
                size = {"size": decoded.picture.size, "stored": (decoded.width, decoded.height)}
                answers.write(json.dumps(size).encode() + b"\n")
                answers.write(decoded.picture.tobytes())
        answers.flush()
        del content
        decoded = None  # neither is held until the next picture comes
        trim()


def _decoded(
    content: bytes, name: str, bounds: Bounds, requests: BinaryIO, answers: BinaryIO
) -> DecodedPicture | None:
    """None where the picture is not wanted any more."""
    if is_raw(content, name):  # LibRaw tells sizes and decodes in one step, within the bounds
        held = bounds.decoded_bytes if bounds.raw else 0
        return decode(content, name, bounds) if _told(held, content, requests, answers) else None
    with begin(content, name, bounds) as opening:
        return opening.finish() if _told(opening.held, content, requests, answers) else None


def _told(held: int, content: bytes, requests: BinaryIO, answers: BinaryIO) -> bool:
    """Say what decoding will hold, and hold to it; whether to go on."""
    _bound_memory(held + len(content) + _SLACK)
    answers.write(json.dumps({"held": held}).encode() + b"\n")
    answers.flush()
    return not requests.readline().strip()


def _bound_memory(more: int) -> None:
    """Let the process hold so many bytes more than now, where the system can bound that (Linux)."""
    try:
        import resource

        with open("/proc/self/status", encoding="ascii") as status:
            held = next(int(line.split()[1]) for line in status if line.startswith("VmData:"))
        resource.setrlimit(resource.RLIMIT_DATA, (held * 1024 + more, resource.RLIM_INFINITY))
    except (ImportError, OSError, StopIteration, ValueError):  # macOS and Windows: the deadline remains
        return


def _yield_to_others(steps: int) -> None:
    """A lower priority, and one thread: the decoder of AVIF would else take all cores for one picture."""
    if hasattr(os, "nice"):
        os.nice(steps)
    try:
        from PIL import AvifImagePlugin
    except ImportError:  # before Pillow 11.3
        return
    AvifImagePlugin.DEFAULT_MAX_THREADS = 1


if __name__ == "__main__":
    if len(sys.argv) > 1:
        _yield_to_others(int(sys.argv[1]))
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl+C reaches all processes of a terminal
    try:
        serve(sys.stdin.buffer, sys.stdout.buffer)
    except BrokenPipeError:  # whoever asked is gone
        sys.exit(0)
