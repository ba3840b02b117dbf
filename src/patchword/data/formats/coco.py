"""The two JSON layouts of the captioning literature.

Karpathy: {"images": [{"filename", "filepath"?, "imgid", "cocoid"?, "split",
           "sentences": [{"raw", "tokens"}]}]}
COCO:     {"images": [{"id", "file_name"}], "annotations": [{"id", "image_id", "caption"}]},
           one file per split
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path, PurePosixPath
from typing import Any, TypeGuard

from patchword.data.formats.complaints import Complain, clean_caption, clean_file, clean_id, clean_split
from patchword.data.records import CaptionRecord


def is_karpathy(content: object) -> TypeGuard[dict[str, Any]]:
    """True for an object whose pictures contain their own sentences."""
    if not isinstance(content, dict):
        return False
    images = content.get("images")
    return (
        isinstance(images, list)
        and "annotations" not in content
        and any(isinstance(one, dict) and "sentences" in one for one in images)
    )


def is_coco(content: object) -> TypeGuard[dict[str, Any]]:
    """True for an object with separate lists of pictures and annotations."""
    return isinstance(content, dict) and "images" in content and "annotations" in content


def read_karpathy(content: dict, path: Path, complain: Complain) -> list[CaptionRecord]:
    """Reads the records of a Karpathy file.

    `restval` is train, the id is `cocoid` or else `imgid`, and `filepath` and `filename` are joined.
    """
    records = []
    for where, entry in objects_of(content["images"], f"{path}, images", complain):
        name = clean_file(entry.get("filename"), where, complain)
        image_id = clean_id(entry.get("cocoid", entry.get("imgid")), where, complain)
        split = clean_split(entry.get("split"), where, complain)
        folder = entry.get("filepath") or ""
        if not isinstance(folder, str):
            complain("file", where, f"filepath must be a text, found {folder!r}")
            continue
        captions, tokens = _sentences(entry.get("sentences"), where, complain)
        if not captions and split != "test":
            complain("no-caption", where, "the picture has no usable caption: add one or remove the entry")
        elif name is not None and image_id is not None:
            records.append(
                CaptionRecord(image_id, str(PurePosixPath(folder) / name), captions, split, tokens)
            )
    if _are_sentence_ids(content["images"]):
        complain(
            "annotation-ids",
            str(path),
            "every cocoid is the sentid of an own sentence: write the picture's id there",
        )
    return records


def _are_sentence_ids(images: list) -> bool:
    """True where all cocoids (at least two) come from their own sentences, and no file name supports them."""
    entries = [
        one
        for one in images
        if isinstance(one, dict) and "cocoid" in one and isinstance(one.get("sentences"), list)
    ]

    def is_own(entry: dict) -> bool:
        own = [sentence.get("sentid") for sentence in entry["sentences"] if isinstance(sentence, dict)]
        return entry["cocoid"] in own and not re.search(
            rf"(?<!\d)0*{re.escape(str(entry['cocoid']))}\.\w+$", str(entry.get("filename"))
        )

    return len(entries) > 1 and all(map(is_own, entries))


def _sentences(
    value: object, where: str, complain: Complain
) -> tuple[tuple[str, ...], tuple[tuple[str, ...], ...] | None]:
    """Returns the captions of one picture and, where all have them, the words that came with them."""
    captions: list[str] = []
    tokens: list[tuple[str, ...]] = []
    for place, sentence in objects_of(value, f"{where}, sentences", complain):
        words = sentence.get("tokens")
        if not isinstance(words, list) or not all(isinstance(word, str) for word in words):
            words = None
        # Some published files omit `raw` to save space; the words are then the caption.
        raw = sentence.get("raw", None if words is None else " ".join(words))
        caption = clean_caption(raw, place, complain)
        if caption is not None:
            captions.append(caption)
            if words is not None:
                tokens.append(tuple(words))
    have_all = bool(captions) and len(tokens) == len(captions)
    return tuple(captions), tuple(tokens) if have_all else None


def read_coco(content: dict, path: Path, complain: Complain) -> list[CaptionRecord]:
    """Reads the records of a COCO captions file, in the order of its pictures.

    The split is the one in the name of the file.
    """
    files: dict[int | str, str] = {}
    for where, entry in objects_of(content["images"], f"{path}, images", complain):
        image_id = clean_id(entry.get("id"), where, complain)
        name = clean_file(entry.get("file_name"), where, complain)
        if image_id in files:
            complain(
                "duplicate-id",
                where,
                f"the image id {image_id!r} stands twice (also for {files[image_id]}): ids must be unique",
            )
        elif image_id is not None and name is not None:
            files[image_id] = name

    annotations = list(objects_of(content["annotations"], f"{path}, annotations", complain))
    annotation_ids = {entry["id"] for _, entry in annotations if isinstance(entry.get("id"), int | str)}
    captions: dict[int | str, list[str]] = {image_id: [] for image_id in files}
    for where, entry in annotations:
        image_id = clean_id(entry.get("image_id"), where, complain)
        caption = clean_caption(entry.get("caption"), where, complain)
        if image_id is not None and image_id not in files:
            complain(*_unknown_image(image_id, entry, annotation_ids, where))
        elif image_id is not None and caption is not None:
            captions[image_id].append(caption)

    split = split_in_name(path)
    for image_id, found in captions.items():
        if not found and split != "test":
            complain(
                "no-caption",
                f"{path}, image {image_id!r}",
                f"no annotation gives a caption for {files[image_id]}",
            )
    usable = [image_id for image_id, found in captions.items() if found or split == "test"]
    return [CaptionRecord(image_id, files[image_id], tuple(captions[image_id]), split) for image_id in usable]


def _unknown_image(image_id: int | str, entry: dict, annotation_ids: set, where: str) -> tuple[str, str, str]:
    message = f"image_id {image_id!r} is the id of no picture in this file"
    if image_id == entry.get("id") or image_id in annotation_ids:
        return (
            "annotation-ids",
            where,
            f"{message}, but it is the id of an annotation: write the picture's id into image_id",
        )
    return "unknown-image", where, f"{message}: add the picture to images or remove the annotation"


def split_in_name(path: Path) -> str | None:
    """captions_train2014.json is train, captions_val2017.json is val; other names give None."""
    found = re.search(r"(?:^|[^a-z])(train|val|test)(?:[^a-z]|$)", path.stem.lower())
    return found.group(1) if found else None


def objects_of(value: object, where: str, complain: Complain) -> Iterator[tuple[str, dict]]:
    """Yields each object of a list with its position, and complains about everything else."""
    if not isinstance(value, list):
        complain("layout", where, f"expected a list of objects, found {type(value).__name__}")
        return
    for index, entry in enumerate(value):
        if isinstance(entry, dict):
            yield f"{where}[{index}]", entry
        else:
            complain("layout", f"{where}[{index}]", f"expected an object, found {type(entry).__name__}")
