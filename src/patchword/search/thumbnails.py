"""Small copies of the pictures of an index, made while it is made: a page with found pictures opens no
original.

    OUT/thumbnails/<first two digits>/<SHA-256 of the original>

They are named by content, so that a moved picture keeps its copy, and two that are the same share it. All of
them can be made again from the originals: what is missing or damaged is no fault of the index.
"""

from __future__ import annotations

import os
import re
from pathlib import Path

from PIL import Image

from patchword.html.pictures import small_jpeg

SIDE = 240
"""Pixels of the longer side."""
_KEY = re.compile("[0-9a-f]{64}")


def is_key(text: str) -> bool:
    """Whether this can be the name of a copy: 64 hexadecimal digits."""
    return _KEY.fullmatch(text) is not None


class Thumbnails:
    """The small copies beside an index."""

    def __init__(self, index: Path) -> None:
        self._folder = index / "thumbnails"

    def _path(self, key: str) -> Path:
        return self._folder / key[:2] / key

    def has(self, key: str) -> bool:
        """Whether there is a copy."""
        return self._path(key).exists()

    def read(self, key: str) -> bytes | None:
        """The JPEG, or None where there is none, or only a part of one."""
        try:
            content = self._path(key).read_bytes()
        except OSError:
            return None
        return content if content.startswith(b"\xff\xd8") and content.endswith(b"\xff\xd9") else None

    def write(self, key: str, picture: Image.Image) -> bytes:
        """Make the copy and keep it. Raises OSError where it cannot be kept."""
        content, path = small_jpeg(picture, SIDE), self._path(key)
        path.parent.mkdir(parents=True, exist_ok=True)
        aside = path.with_name(f"{key}.part-{os.getpid()}")
        aside.write_bytes(content)
        os.replace(aside, path)
        return content

    def remove(self, key: str) -> None:
        """Forget a copy, where there is one."""
        self._path(key).unlink(missing_ok=True)
