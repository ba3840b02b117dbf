"""Pictures as a person names them on the command line: files, folders and globs; and what of a folder is no
picture, by reason."""

from __future__ import annotations

import glob
import os
import stat
from collections import Counter
from collections.abc import Iterable
from functools import cache
from importlib.util import find_spec
from pathlib import Path
from typing import NamedTuple

from patchword.data.headers import RAW_SUFFIXES, SUFFIXES, starts_like_a_picture
from patchword.data.pictures import is_url
from patchword.errors import DataError

NO_PICTURE = "no picture"
BROKEN_LINK = "broken link"
UNREADABLE_FOLDER = "folder that cannot be read"
UNREADABLE_FILE = "file that cannot be read"
LINKED_FOLDER = "linked folder, not followed"
MATCHED_FOLDER = "folder that a pattern matches, not looked into"
RAW = "camera raw, needs pip install 'patchword[raw]'"

LOST = frozenset({BROKEN_LINK, UNREADABLE_FOLDER, UNREADABLE_FILE, RAW})
"""Reasons by which a picture was probably lost: a command ends with exit status 1."""


class SkippedFile(NamedTuple):
    """Something in a folder that is not read as a picture."""

    path: Path
    reason: str


class PictureListing(NamedTuple):
    """What was found under the names that were given."""

    pictures: list[Path | str]
    """Text is an address on the web; everything else is a path."""
    left_out: list[SkippedFile]

    def by_reason(self) -> dict[str, int]:
        """How many things were left out for each reason, most first."""
        return dict(Counter(one.reason for one in self.left_out).most_common())

    def lost(self) -> list[SkippedFile]:
        """Those that were probably pictures."""
        return [one for one in self.left_out if one.reason in LOST]


def find_pictures(names: Iterable[str], allow_urls: bool = False) -> PictureListing:
    """Files as they are named, whatever their suffix; folders with all their pictures below, sorted; globs
    (`**` too); with `allow_urls` addresses.

    A path named twice comes once. A file that does not exist stays in the list, so that it is reported with
    the pictures that cannot be read. Raises DataError for a folder or a glob without a picture, and for an
    address where none is allowed.
    """
    found: dict[Path | str, None] = {}
    left_out: dict[Path, SkippedFile] = {}
    for name in names:
        path = Path(name)
        if is_url(name):
            if not allow_urls:
                raise DataError(f"{name} is an address: --allow-urls fetches it, or download it yourself")
            inside = PictureListing([name], [])
        elif path.is_dir():
            inside = walk(path)
            if not inside.pictures:
                raise DataError(f"{path} holds no picture{_instead(inside)}")
        elif any(letter in name for letter in "*?[") and not path.exists():
            inside = _matches(name)
            if not inside.pictures:
                raise DataError(f"no file matches {name!r}{_instead(inside)}")
        else:
            inside = PictureListing([path], [])
        found.update(dict.fromkeys(inside.pictures))
        left_out.update({one.path: one for one in inside.left_out})
    return PictureListing(list(found), [one for one in left_out.values() if one.path not in found])


def _instead(found: PictureListing) -> str:
    counts = ", ".join(f"{reason}: {count}" for reason, count in found.by_reason().items())
    return f" ({counts})" if counts else " (it is empty)"


def walk(folder: Path) -> PictureListing:
    """All pictures below a folder, sorted, and everything else with the reason. Links to folders are not
    followed."""
    pictures: list[Path] = []
    left_out: list[SkippedFile] = []

    def failed(error: OSError) -> None:
        left_out.append(SkippedFile(Path(error.filename), UNREADABLE_FOLDER))

    for place, folders, files in os.walk(folder, onerror=failed):
        links = [name for name in folders if os.path.islink(os.path.join(place, name))]
        left_out += [SkippedFile(Path(place, name), LINKED_FOLDER) for name in links]
        for name in files:
            path = os.path.join(place, name)
            reason = why_left_out(path)
            if reason is None:
                pictures.append(Path(path))
            else:
                left_out.append(SkippedFile(Path(path), reason))
    return PictureListing(sorted(pictures), sorted(left_out))


def why_left_out(path: str) -> str | None:
    """Why a file of a folder is not read as a picture; None where it is. Its suffix tells, or else its
    first bytes."""
    suffix, name = os.path.splitext(path)[1].lower(), os.path.basename(path)
    try:
        mode = os.stat(path).st_mode
        if not stat.S_ISREG(mode):
            return NO_PICTURE
        if not name.startswith(
            "._"
        ):  # where macOS keeps what other systems cannot hold, under the picture's own suffix
            if suffix in SUFFIXES:
                return None
            if suffix in RAW_SUFFIXES:
                return None if _reads_raw() else RAW
        with open(path, "rb") as file:
            return None if starts_like_a_picture(file.read(16)) else NO_PICTURE
    except OSError:
        return BROKEN_LINK if os.path.islink(path) and not os.path.exists(path) else UNREADABLE_FILE


@cache
def _reads_raw() -> bool:
    return find_spec("rawpy") is not None


def _matches(pattern: str) -> PictureListing:
    """Files that a glob names, taken as if each was named."""
    matches = [Path(match) for match in sorted(glob.glob(pattern, recursive=True))]
    left_out = [
        SkippedFile(path, MATCHED_FOLDER) for path in matches if path.is_dir() and not pattern.endswith("**")
    ]
    return PictureListing([path for path in matches if not path.is_dir()], left_out)
