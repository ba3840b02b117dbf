"""Pictures as a person names them on the command line: files, folders and globs."""

from __future__ import annotations

import glob
from collections.abc import Iterable
from pathlib import Path

from patchword.errors import DataError

SUFFIXES = frozenset(
    {".jpg", ".jpeg", ".png", ".webp", ".bmp", ".gif", ".tif", ".tiff", ".jfif", ".ppm", ".pgm"}
)


def find_pictures(names: Iterable[str]) -> list[Path]:
    """Files as they are named, whatever their suffix; folders with all their pictures below, sorted; globs (`**` too).

    A path named twice comes once. Raises DataError for a folder or a glob without a picture; a file that does not exist stays in the
    list, so that it is reported with the pictures that cannot be read.
    """
    found: dict[Path, None] = {}
    for name in names:
        path = Path(name)
        if path.is_dir():
            inside = sorted(
                file for file in path.rglob("*") if file.suffix.lower() in SUFFIXES and file.is_file()
            )
            if not inside:
                raise DataError(f"{path} holds no picture ({', '.join(sorted(SUFFIXES))})")
            found.update(dict.fromkeys(inside))
        elif any(letter in name for letter in "*?[") and not path.exists():
            matches = sorted(
                Path(match) for match in glob.glob(name, recursive=True) if Path(match).is_file()
            )
            if not matches:
                raise DataError(f"no file matches {name!r}")
            found.update(dict.fromkeys(matches))
        else:
            found[path] = None
    return list(found)
