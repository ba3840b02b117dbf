"""Files and folders are written whole or not at all: aside under a temporary name, forced to the disk, then
renamed.

A full disk, a folder that is read-only, a kill at any moment: under the name that was asked for there is what
stood there before, or all of what is new. A temporary name tells which process writes there, so that what a
killed process left behind is removed by the next one that writes the same file or folder.
"""

from __future__ import annotations

import errno
import hashlib
import json
import os
import re
import shutil
import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, BinaryIO

from patchword.errors import WriteError

_LONGEST_NAME = 120
"""Bytes of a name that a temporary name keeps; systems allow 255, and the temporary name is longer."""

_CAUSES = {
    errno.ENOSPC: "the disk is full: free some space",
    errno.EROFS: "the disk is read-only: choose another place",
    errno.EACCES: "writing is not allowed there: choose another place or change the permissions",
    errno.EPERM: "writing is not allowed there: choose another place or change the permissions",
    errno.EFBIG: "the disk takes no file of this size: choose another place",
    errno.ENOTDIR: "a part of the path is a file: choose another place",
    errno.EISDIR: "it is a folder, and a file is to be written: choose another name",
    errno.ENAMETOOLONG: "the name is too long: choose a shorter one",
}
if hasattr(errno, "EDQUOT"):
    _CAUSES[errno.EDQUOT] = "your share of the disk is used up: free some space"


def write_bytes(path: Path, content: bytes) -> None:
    """Write a file, whole or not at all. Raises WriteError where it cannot be written."""
    with whole_file(path) as aside:
        aside.write_bytes(content)


def write_text(path: Path, content: str) -> None:
    """Write a file as UTF-8, whole or not at all; a lone surrogate (part of a name that is no UTF-8) is kept
    as its byte.

    Raises WriteError where the file cannot be written.
    """
    write_bytes(path, content.encode("utf-8", "surrogateescape"))


def write_json(path: Path, content: Any, indent: int | None = None) -> None:
    """Write JSON as UTF-8, whole or not at all; a text with a lone surrogate (part of a name that is no
    UTF-8) is escaped.

    Raises WriteError where the file cannot be written.
    """
    written = json.dumps(content, indent=indent, ensure_ascii=False)
    write_bytes(path, written.encode("utf-8", "backslashreplace"))


@contextmanager
def whole_file(path: Path) -> Iterator[Path]:
    """A path to write to, with the suffix of `path`, which takes the name `path` when the block ends without
    an error.

    A link keeps pointing where it points, and its target is replaced; a device or a pipe is written to
    directly.

    Raises:
        WriteError: the file cannot be written (no space, no permission, no such folder); what stood there
            before still does.
    """
    path = Path(path)
    path = path.resolve() if path.is_symlink() else path
    if path.exists() and not path.is_file() and not path.is_dir():
        with _explained(path, path):
            yield path
        return
    aside = _aside(path)
    with _explained(path, aside):
        if path.is_dir():
            raise IsADirectoryError(errno.EISDIR, "is a folder", str(aside))
        remove_leftovers(path)
        try:
            yield aside
            _force(aside)
            os.replace(aside, path)
        except BaseException:
            with suppress(OSError):  # where nothing can be written, nothing can be removed either
                aside.unlink(missing_ok=True)
            raise
        _force_folder(path.parent)


@contextmanager
def whole_folder(folder: Path, over: bool = False) -> Iterator[Path]:
    """A new, empty folder to write into, which takes the name `folder` when the block ends without an error.

    Args:
        over: whether it replaces the folder that stands there; else there must be none, or an empty one.

    Raises:
        WriteError: the folder exists and is not empty, or it cannot be written; what stood there before still
            does.
    """
    folder = Path(folder)
    folder = folder.resolve() if folder.is_symlink() else folder
    aside = _aside(folder)
    with _explained(folder, aside):
        recover_folder(folder)
        remove_leftovers(folder)
        if folder.exists() and not folder.is_dir():
            raise WriteError(f"{folder} is a file, and a folder is to be written: choose another name")
        _refuse_full(folder, over)
        aside.mkdir(parents=True)
        try:
            yield aside
            _refuse_full(folder, over)  # another process may have been first
            replace_folder(aside, folder)
        except BaseException:
            shutil.rmtree(aside, ignore_errors=True)
            raise


def replace_folder(made: Path, target: Path) -> None:
    """Put a finished folder in the place of another; a kill at any moment leaves the old or the new one (see
    `recover_folder`).
    """
    for path in sorted(made.rglob("*")):
        if path.is_file():
            _force(path)
        else:
            _force_folder(path)
    _force_folder(made)
    old = _old(target)
    shutil.rmtree(old, ignore_errors=True)
    if target.exists():
        target.rename(old)
    made.rename(target)
    _force_folder(target.parent)
    shutil.rmtree(old, ignore_errors=True)


def recover_folder(target: Path) -> None:
    """After a kill inside `replace_folder`: put the old folder back if the new one had not arrived."""
    old = _old(target)
    if not target.exists() and old.exists():
        old.rename(target)


def remove_leftovers(target: Path) -> None:
    """Remove what processes of this machine that are no longer running left behind while they wrote
    `target`."""
    stem, suffix = _named(target)
    pattern = re.compile(
        re.escape(f"{stem}.partial-") + r"(\d+)(?:-[0-9a-f]+@(.*))?" + re.escape(suffix), re.DOTALL
    )
    if not target.parent.is_dir():
        return
    for path in target.parent.iterdir():
        found = pattern.fullmatch(path.name)
        if found is None or found[2] not in (None, _host()) or _is_written(path, int(found[1])):
            continue
        if path.is_dir():
            shutil.rmtree(path, ignore_errors=True)
        else:
            path.unlink(missing_ok=True)


def allocate(file: BinaryIO, size: int) -> None:
    """Take `size` bytes of the disk for an open, empty file, so that a disk that is too small is noticed
    before the work begins.

    Raises OSError (ENOSPC) where they are not there; `whole_file` and `whole_folder` say so in one line.
    """
    free = shutil.disk_usage(Path(file.name).parent).free
    if size > free:
        needed = f"{_told(size)} are needed and {_told(free)} are free"
        raise OSError(errno.ENOSPC, needed, file.name)
    if hasattr(os, "posix_fallocate") and size:
        try:
            os.posix_fallocate(file.fileno(), 0, size)
        except OSError as error:
            if error.errno not in (
                errno.EOPNOTSUPP,
                errno.EINVAL,
                errno.ENOSYS,
            ):  # some network drives know no such call
                raise


def _told(size: int) -> str:
    return f"{size / 2**20:.1f} MiB" if size >= 2**20 else f"{-(-size // 2**10)} KiB"


def text_digest(text: str) -> str:
    """SHA-256 of a text in UTF-8, as 64 hexadecimal digits."""
    return hashlib.sha256(text.encode("utf-8", "surrogateescape")).hexdigest()


def json_digest(content: Any) -> str:
    """SHA-256 of a JSON value, whatever the order of its keys."""
    return text_digest(json.dumps(content, sort_keys=True))


def file_digest(path: Path) -> str:
    """SHA-256 of a file's content. Raises OSError where it cannot be read."""
    digest = hashlib.sha256()
    with open(path, "rb") as file:
        while part := file.read(1 << 20):
            digest.update(part)
    return digest.hexdigest()


_READ_OR_WRITTEN = {
    **{number: _CAUSES[number] for number in (errno.ENOSPC, errno.EROFS, errno.ENAMETOOLONG)},
    errno.ENOENT: "there is no such file or folder",
    errno.EACCES: "the system does not allow it: change the permissions, or choose another place",
    errno.EPERM: "the system does not allow it: change the permissions, or choose another place",
    errno.ENOTDIR: "a part of the path is a file, where a folder is expected",
    errno.EISDIR: "it is a folder, where a file is expected",
    errno.EEXIST: "it is there already: choose another name",
}


def what_failed(error: OSError) -> str | None:
    """The same for a file of which it is not known whether it was read or written."""
    return _READ_OR_WRITTEN.get(error.errno or 0) or why_not_written(error)


def why_not_written(error: OSError) -> str | None:
    """What is wrong with the disk or the permissions, and what to do; None for an error of another kind."""
    return _CAUSES.get(error.errno or 0)


@contextmanager
def _explained(path: Path, aside: Path) -> Iterator[None]:
    """Errors of the system while `path` is written, as WriteError; those about other files pass through."""
    try:
        yield
    except WriteError as error:  # of a file inside of the folder: named as the person knows it
        raise type(error)(str(error).replace(str(aside), str(path))) from error
    except OSError as error:
        cause = why_not_written(error)
        about_us = error.filename is None or str(error.filename).startswith((str(aside), str(path)))
        if error.errno == errno.ENOENT and about_us and not path.parent.is_dir():
            cause = f"there is no folder {path.parent}: make it first"
        if cause is None or not (about_us or error.errno in (errno.ENOSPC, errno.EROFS)):
            raise
        detail = f" ({error.strerror})" if error.errno == errno.ENOSPC and error.filename else ""
        unchanged = "what was there before is unchanged"
        raise WriteError(f"{path} cannot be written, {cause}{detail}; {unchanged}") from error


def _refuse_full(folder: Path, over: bool) -> None:
    if not over and folder.exists() and any(folder.iterdir()):
        raise WriteError(f"{folder} exists and is not empty: choose another folder or remove it first")


def _aside(target: Path) -> Path:
    stem, suffix = _named(target)
    token = f"{threading.get_ident():x}"
    return target.with_name(f"{stem}.partial-{os.getpid()}-{token}@{_host()}{suffix}")


def _named(target: Path) -> tuple[str, str]:
    """The parts of a name around the mark of a temporary name; a long name is cut and told apart by a
    digest."""
    stem, suffix = target.stem, target.suffix
    if len(os.fsencode(target.name)) > _LONGEST_NAME:
        kept = os.fsencode(target.name)[:_LONGEST_NAME].decode("utf-8", "ignore")
        stem, suffix = kept + text_digest(target.name)[:12], suffix[:12]
    return stem, suffix


def _old(target: Path) -> Path:
    return target.with_name(target.name + ".old")


def _host() -> str:
    return re.sub(r"[^A-Za-z0-9_-]", "-", socket.gethostname())[:40]


def _is_written(path: Path, process: int) -> bool:
    """Whether the process that began `path` may still be writing it; a number that another process has since
    then does not count.
    """
    import psutil

    try:
        return psutil.Process(process).create_time() <= path.stat().st_mtime + 1
    except (psutil.NoSuchProcess, FileNotFoundError):
        return False
    except psutil.AccessDenied:
        return True


def _force(path: Path) -> None:
    with open(path, "rb+") as file:
        os.fsync(file.fileno())


def _force_folder(folder: Path) -> None:
    if os.name == "nt":  # Windows opens no folders
        return
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    except OSError as error:
        if error.errno not in (errno.EINVAL, errno.ENOTSUP, errno.EBADF):  # some network drives cannot
            raise
    finally:
        os.close(descriptor)


def printable(text: str) -> str:
    """The text itself on one line where a terminal can show it, else quoted with escapes (line breaks, bytes
    that are no text)."""
    return text if text.isprintable() else json.dumps(text)
