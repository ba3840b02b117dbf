"""Captions that lie in plain text files beside the pictures: the Flickr token file with its split lists, and
photo.jpg with photo.txt.
"""

from __future__ import annotations

import re
from pathlib import Path

from patchword.data.formats.complaints import SPLITS, Complain, clean_caption, clean_file, read_text
from patchword.data.headers import SUFFIXES
from patchword.data.records import CaptionRecord
from patchword.errors import DataError

_TOKEN_LINE = re.compile(r"(?P<file>[^\t]+?)#(?P<number>\d+)\t(?P<caption>.*)")
_SPLIT_LIST = re.compile(r"(?:.*[._-])?(train|dev|val|test)(?:images)?\.txt", re.IGNORECASE)


def is_token_file(text: str) -> bool:
    """True when the first line that is not blank reads `picture.jpg#0<TAB>caption`."""
    first = next((line for line in text.split("\n") if line.strip()), "")
    return _TOKEN_LINE.fullmatch(first) is not None


def read_flickr(text: str, path: Path, complain: Complain) -> list[CaptionRecord]:
    """Records of a Flickr8k or Flickr30k token file; splits from the lists beside it
    (Flickr_8k.trainImages.txt, train.txt …).
    """
    captions: dict[str, list[str]] = {}
    for number, line in enumerate(text.split("\n"), start=1):
        where = f"{path}, line {number}"
        if not line.strip():
            continue
        found = _TOKEN_LINE.fullmatch(line)
        if found is None:
            complain("layout", where, f"expected picture.jpg#0<TAB>caption, found {line[:60]!r}")
            continue
        name = clean_file(found["file"], where, complain)
        caption = clean_caption(found["caption"], where, complain)
        if name is not None and caption is not None:
            captions.setdefault(name, []).append(caption)
    splits = _split_lists(path, captions, complain)
    return [CaptionRecord(name, name, tuple(found), splits.get(name)) for name, found in captions.items()]


def _split_lists(path: Path, known: dict, complain: Complain) -> dict[str, str]:
    """Split of each picture that a list beside the token file names."""
    splits: dict[str, str] = {}
    for file in sorted(path.parent.iterdir()):
        found = _SPLIT_LIST.fullmatch(file.name)
        if found is None or file == path or not file.is_file():
            continue
        split = SPLITS[found.group(1).lower()]
        for number, line in enumerate(read_text(file, complain).split("\n"), start=1):
            name, where = line.strip(), f"{file}, line {number}"
            if not name:
                continue
            if name not in known and f"{name}.jpg" in known:
                name = f"{name}.jpg"  # the lists of Flickr30k leave the suffix out
            if name not in known:
                complain(
                    "unknown-image",
                    where,
                    f"{name!r} is in the {split} list but has no caption in {path.name}",
                )
            elif splits.setdefault(name, split) != split:
                complain(
                    "overlap",
                    where,
                    f"{name} is in {split} here and in {splits[name]} in another list: it belongs to one "
                    "split",
                )
    return splits


def token_file_in(folder: Path) -> Path | None:
    """The Flickr token file of a folder, if there is exactly one."""
    found = [
        file
        for file in sorted(folder.iterdir())
        if file.is_file() and re.search(r"\.token(\.txt)?$", file.name)
    ]
    if len(found) > 1:
        raise DataError(
            f"{folder}: holds several token files ({', '.join(file.name for file in found)}). Name the one "
            "to read."
        )
    return found[0] if found else None


def read_folder(folder: Path, complain: Complain) -> list[CaptionRecord]:
    """Records of a folder in which photo.txt, one caption per line, lies beside photo.jpg; folders train, val
    and test give the split.
    """
    records = []
    for file in sorted(folder.rglob("*")):
        if file.suffix.lower() not in SUFFIXES or not file.is_file():
            continue
        name = file.relative_to(folder)
        beside = file.with_suffix(".txt")
        if not beside.is_file():
            complain(
                "no-caption",
                str(file),
                f"{beside.name} does not lie beside it: write a caption there, or take the picture away",
            )
            continue
        lines = [
            (number, line)
            for number, line in enumerate(read_text(beside, complain).split("\n"), start=1)
            if line.strip()
        ]
        if not lines:
            complain("empty-caption", str(beside), "the file is empty: write a caption into it, one per line")
        found = [clean_caption(line, f"{beside}, line {number}", complain) for number, line in lines]
        captions = tuple(caption for caption in found if caption is not None)
        split = SPLITS.get(name.parts[0].lower()) if len(name.parts) > 1 else None
        if captions and clean_file(name.as_posix(), str(folder), complain):
            records.append(CaptionRecord(name.as_posix(), name.as_posix(), captions, split))
    return records
