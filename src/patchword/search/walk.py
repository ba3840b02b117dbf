"""What is in a folder, compared with what the index knows of it. Absence is not deletion: a picture is only
called gone where the folder that should hold it can be read and is not empty, for an unmounted drive looks
like an empty folder."""

from __future__ import annotations

import errno
import json
import os
import re
from collections import Counter
from collections.abc import Collection, Iterable, Mapping
from pathlib import Path
from typing import NamedTuple

from patchword.data.sources import (
    BROKEN_LINK,
    LINKED_FOLDER,
    UNREADABLE_FILE,
    UNREADABLE_FOLDER,
    why_left_out,
)
from patchword.errors import StoreError, counted
from patchword.search.manifest import NAME
from patchword.search.segments import KnownPicture

LOCK = "index.lock"
"""Stands in every index folder; a folder with it is an index and holds no pictures of the person's own."""


OLD_LOCK = "lock.sqlite"
"""The same in an index of format 1."""


def is_index(folder: Path) -> bool:
    """Whether a folder is an index, a damaged one included; a folder of pictures may hold an index.json of
    its own."""
    if any((folder / name).exists() for name in (LOCK, OLD_LOCK)):
        return True
    try:
        content = json.loads((folder / NAME).read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError):
        return False
    return isinstance(content, dict) and "format" in content and ("index" in content or "model" in content)


class Status(NamedTuple):
    """A file as the system describes it."""

    size: int
    time_ns: int


class Walk(NamedTuple):
    """What was found under a folder."""

    found: dict[bytes, Status]
    unreadable: dict[bytes, str]
    """Folders and files that could not be looked at, with the reason."""
    mounts: set[bytes]
    """Where another drive is mounted, at the folder, above it or under it."""
    empty: bool
    """Whether the folder holds nothing at all."""
    left_out: Counter[str]
    """How many files and folders are no pictures that can be read, by reason (`data.sources`)."""


class Comparison(NamedTuple):
    """The folder beside the index."""

    waiting: list[bytes]
    """New pictures, and those of another size or time than the index knows."""
    gone: dict[bytes, KnownPicture]
    """Pictures of the index that are deleted, with evidence."""
    absent: dict[str, int]
    """Folders that cannot be read or whose drive is not mounted, and how many pictures the index keeps of
    them."""


def mounted() -> frozenset[bytes]:
    """Where the system says that something is mounted (Linux; elsewhere nowhere): a part of a file system
    that is mounted within the same one has no device number of its own, by which `os.path.ismount` tells."""
    try:
        lines = Path("/proc/self/mountinfo").read_bytes().splitlines()
    except OSError:
        return frozenset()
    places = (line.split()[4] for line in lines)
    return frozenset(re.sub(rb"\\([0-7]{3})", lambda code: bytes([int(code[1], 8)]), one) for one in places)


def is_mount(path: bytes, places: Collection[bytes]) -> bool:
    """Whether something is mounted at a path; `places` is what `mounted` gave."""
    return os.path.ismount(path) or path in places


def walk(folder: Path) -> Walk:
    """All pictures under a folder with its sub-folders, index folders left out. Links to folders are not
    followed."""
    places = mounted()
    above = _mount_above(os.fsencode(folder), places)
    seen = Walk({}, {}, set() if above is None else {above}, False, Counter())
    entries = 0

    def failed(error: OSError) -> None:
        seen.unreadable[os.fsencode(error.filename)] = str(error.strerror)
        seen.left_out[UNREADABLE_FOLDER] += 1

    for place, folders, names in os.walk(folder, onerror=failed):
        entries += len(folders) + len(names)
        if NAME in names and LOCK in names:
            folders.clear()
            continue
        seen.mounts.update(
            under for one in folders if is_mount(under := os.fsencode(os.path.join(place, one)), places)
        )
        folders.sort()
        seen.left_out[LINKED_FOLDER] += sum(os.path.islink(os.path.join(place, one)) for one in folders)
        for name in sorted(names):
            path = os.path.join(place, name)
            reason = why_left_out(path)
            if reason is None:
                try:
                    status = os.stat(path)
                except OSError as error:  # gone, or lost its rights, since the folder was listed
                    seen.unreadable[os.fsencode(path)] = str(error.strerror)
                    continue
                seen.found[os.fsencode(path)] = Status(status.st_size, status.st_mtime_ns)
            else:
                seen.left_out[reason] += 1
                if reason in (BROKEN_LINK, UNREADABLE_FILE):
                    seen.unreadable[os.fsencode(path)] = reason
    return seen._replace(empty=not entries and os.fsencode(folder) not in seen.unreadable)


def _mount_above(path: bytes, places: Collection[bytes]) -> bytes | None:
    """Where the drive of a path is mounted; None for the root of the file system, which is always there."""
    while not is_mount(path, places):
        path = os.path.dirname(path)
    return path if os.path.dirname(path) != path or os.name == "nt" else None


def prefix_of(folder: Path) -> bytes:
    """The prefix that the paths of all files under a folder share."""
    path = os.fsencode(folder)
    separator = os.fsencode(os.sep)
    return path if path.endswith(separator) else path + separator


def known_name(folder: Path, roots: Collection[str]) -> Path:
    """The name under which an index holds a folder that it knows: by a link, or by another way to the same
    place, the same pictures would come twice. `roots` are the folders that were indexed."""
    if str(folder) in roots:
        return folder
    real = os.path.realpath(folder)
    for root in roots:
        held = os.path.realpath(root)
        inside = os.fsencode(real).startswith(prefix_of(Path(held)))
        if os.path.isdir(root) and (real == held or inside):
            return Path(root, os.path.relpath(real, held))
    return folder


def compare(
    folder: Path, seen: Walk, known: Mapping[bytes, KnownPicture], mounts: Iterable[bytes], allow_empty: bool
) -> Comparison:
    """What is to be embedded, and what is to be forgotten.

    Args:
        known: the pictures that the index holds of the folder.
        mounts: where drives were mounted when pictures were indexed.
        allow_empty: whether pictures of an empty folder, or of a drive that is not mounted, are forgotten.

    Raises:
        StoreError: the folder is empty and the index holds pictures of it.
    """
    if known and seen.empty and not allow_empty:
        raise StoreError(
            f"{folder}: the folder is empty, and the index holds {counted(len(known), 'picture')} "
            "of it; a drive "
            "that is not mounted looks so. Nothing was changed: mount it, or forget them with --allow-empty"
        )
    waiting = [path for path, status in seen.found.items() if _changed(known.get(path), status)]
    silent = set(seen.unreadable)
    if not allow_empty:
        places = mounted()
        silent |= {mount for mount in mounts if not is_mount(mount, places)}
    gone: dict[bytes, KnownPicture] = {}
    absent: dict[str, int] = {}
    for path, one in known.items():
        if path in seen.found:
            continue
        place = _place_among(silent, path)
        if place is not None:
            shown = os.fsdecode(place)
            absent[shown] = absent.get(shown, 0) + 1
        elif not os.path.lexists(path):
            gone[path] = one
    return Comparison(waiting, gone, absent)


def _changed(known: KnownPicture | None, status: Status) -> bool:
    return known is None or (known.size, known.time_ns) != status


def _place_among(places: Collection[bytes], path: bytes) -> bytes | None:
    """The path itself, or the folder above it, that is one of `places`."""
    while path not in places:
        above = os.path.dirname(path)
        if above == path:
            return None
        path = above
    return path


def is_gone(path: bytes, mounts: Collection[bytes]) -> bool:
    """Whether a picture is deleted, with evidence: its drive is mounted, and the nearest folder above it that
    exists can be read and is not empty. `mounts`: where drives were mounted when pictures were indexed."""
    if _exists(path):
        return False
    mount = _place_among(mounts, path)
    return (mount is None or is_mount(mount, mounted())) and _is_filled(os.path.dirname(path))


def _is_filled(folder: bytes) -> bool:
    """Whether the nearest folder that exists can be read and is not empty."""
    while True:
        try:
            with os.scandir(folder) as entries:
                return any(True for _ in entries)
        except (FileNotFoundError, NotADirectoryError):
            above = os.path.dirname(folder)
            if above == folder:
                return False
            folder = above
        except OSError:
            return False


def _exists(path: bytes) -> bool:
    """Whether there is such a file, or it cannot be known."""
    try:
        os.lstat(path)
    except OSError as error:
        return error.errno not in (errno.ENOENT, errno.ENOTDIR)
    return True


def missing(paths: Iterable[bytes]) -> list[bytes]:
    """Those of some paths at which there is no file any more."""
    return [path for path in paths if not _exists(path)]
