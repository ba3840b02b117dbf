"""Reads predictions and references as the field writes them; every image id becomes a string."""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path, PurePosixPath
from typing import Any

from patchword.data.formats.tables import CAPTION, IMAGE
from patchword.data.headers import SUFFIXES as PICTURE_SUFFIXES
from patchword.errors import DataError, counted
from patchword.metrics.rows import SUFFIXES, Columns, predicted_rows, refuse_duplicates

CAPTIONS = Columns(
    ("image_id", "id", "imgid", "cocoid", *IMAGE), (*CAPTION, "prediction"), "an image_id and a caption"
)
"""How files of captions name the image and what is said of it."""


def read_predictions(path: Path) -> dict[str, str]:
    """Captions by image id: a COCO results file (`[{"image_id": 42, "caption": "a dog"}, ...]`), {id:
    caption}, JSON lines, or CSV, such as the one of `caption --out`, whose ids are paths of pictures (see
    `named_as`).

    Raises DataError where the file is none of these, is empty, or an image stands in it twice.
    """
    rows = predicted_rows(path, CAPTIONS)
    if not rows:
        raise DataError(f"{path}: holds no predictions; expected {CAPTIONS.what} of every image")
    return {row.id: row.text for row in rows}


def read_prediction_files(path: Path) -> dict[str, dict[str, str]]:
    """Predictions by name: of one file, or of every file of a folder that ends in .json, .jsonl, .csv or
    .tsv."""
    if not path.is_dir():
        return {path.stem: read_predictions(path)}
    files = [file for file in sorted(path.iterdir()) if file.suffix.lower() in SUFFIXES and file.is_file()]
    if not files:
        raise DataError(
            f"{path}: the folder holds no file of predictions; expected COCO results files (.json), "
            ".jsonl or .csv"
        )
    stems = Counter(file.stem for file in files)
    return {file.stem if stems[file.stem] == 1 else file.name: read_predictions(file) for file in files}


def named_as(
    predictions: Mapping[str, str], references: Mapping[str, object], files: Mapping[str, Sequence[str]]
) -> tuple[dict[str, str], int]:
    """The predictions under the ids of the references, and how many of them were found by the name of their
    picture.

    A prediction whose id the references do not have may carry the path of its picture instead: it belongs to
    the reference whose file ends the same way, else to the one whose id or file has the same stem
    (`photos/42.jpg` to 42, COCO's `COCO_val2014_000000000042.jpg` to 42). What fits none keeps its id. Raises
    DataError where two references fit, or two predictions one reference.
    """
    if all(name in references for name in predictions):
        return dict(predictions), 0
    places = _by_name(references, files)
    found: dict[str, str] = {}
    moved = 0
    for name, text in predictions.items():
        image = name if name in references else _image_of(name, references, places)
        if image in found:
            raise DataError(
                f"the predictions hold two captions of image {image}; the second is that of {name!a}"
            )
        found[image] = text
        moved += image != name
    return found, moved


def _by_name(references: Mapping[str, object], files: Mapping[str, Sequence[str]]) -> dict[str, set[str]]:
    """Ids by every name under which a picture may be spoken of: its id, its path, the ends of the path, and
    the stem."""
    places: dict[str, set[str]] = {}
    for image in references:
        for file in (image, *files.get(image, ())):
            parts = PurePosixPath(file.replace("\\", "/")).parts
            ends = ["/".join(parts[first:]) for first in range(len(parts))]
            for name in (*ends, PurePosixPath(file).stem):
                places.setdefault(name, set()).add(image)
    return places


def _image_of(name: str, references: Mapping[str, object], places: Mapping[str, set[str]]) -> str:
    path = PurePosixPath(name.replace("\\", "/"))
    number = re.search(r"(\d{12})$", path.stem)
    ends = ["/".join(path.parts[first:]) for first in range(len(path.parts))]
    for key in (*ends, path.stem, str(int(number[1])) if number else path.stem):
        fitting = places.get(key, set())
        if len(fitting) > 1:
            some = ", ".join(sorted(fitting)[:3])
            raise DataError(
                f"the prediction of {name!a} fits several images of the references ({some}): give image "
                "ids in place of paths"
            )
        if fitting:
            return next(iter(fitting))
    return name


def read_references(path: Path, split: str | None = None) -> dict[str, list[str]]:
    """Reference captions by image id, untouched, in the order of the file.

    COCO captions JSON, Karpathy JSON (`split` chooses images; train includes restval), a folder of `ID.txt`
    with one caption per line, {id: [captions]}, rows of `image_id` and `caption`, or any other format that a
    training reads. Raises DataError where the file is none of these or `split` finds nothing.
    """
    if (
        path.is_dir()
        and (texts := sorted(path.glob("*.txt")))
        and not any(_is_picture(file) for file in path.iterdir())
    ):
        _refuse_split(split, path)
        return {file.stem: [line for line in _text(file).split("\n") if line.strip()] for file in texts}
    content = parsed(path) if path.suffix == ".json" else None
    if isinstance(content, dict) and isinstance(content.get("annotations"), list):
        _refuse_split(split, path)
        return _coco(content, path)
    if isinstance(content, dict) and isinstance(content.get("images"), list):
        return _karpathy(content["images"], path, split)
    if (grouped := _grouped(content, path)) is not None:
        _refuse_split(split, path)
        return grouped
    from patchword.data.formats.readers import read_captions, split_records

    records = read_captions(path)
    chosen = split_records(records, split) if split else records
    return {str(record.image_id): list(record.captions) for record in chosen}


def reference_files(path: Path) -> dict[str, list[str]]:
    """File names of each image as COCO's and Karpathy's JSON give them; empty for other formats, whose ids
    are file names."""
    content = parsed(path) if path.suffix == ".json" and path.is_file() else None
    entries = content.get("images") if isinstance(content, dict) else None
    names: dict[str, list[str]] = {}
    for entry in entries if isinstance(entries, list) else []:
        if isinstance(entry.get("file_name"), str):
            names[str(entry.get("id"))] = [entry["file_name"]]
        elif isinstance(entry.get("filename"), str):
            image, name = str(entry.get("cocoid", entry.get("imgid", entry["filename"]))), entry["filename"]
            names[image] = [f"{entry['filepath']}/{name}", name] if entry.get("filepath") else [name]
    return names


def find_images(references: Path, images: Path, wanted: Iterable[str]) -> dict[str, Path]:
    """The picture of each image id in a folder: by the file name in the references, else a file called by the
    id.

    Raises DataError listing the images that have none.
    """
    names = reference_files(references)
    by_stem = (
        {file.stem: file for file in sorted(images.iterdir()) if _is_picture(file)} if images.is_dir() else {}
    )
    found, missing = {}, []
    for image in wanted:
        files = [images / name for name in [*names.get(image, ()), image]] + [
            by_stem.get(image, images / image)
        ]
        file = next((file for file in files if file.is_file()), None)
        if file is None:
            missing.append(image)
        else:
            found[image] = file
    if missing:
        tried = names.get(missing[0], [f"{missing[0]}.jpg"])[0]
        raise DataError(
            f"{images}: {counted(len(missing), 'image has', 'images have')} no picture there, the "
            f"first is {missing[0]} (looked for "
            f"{tried})"
        )
    return found


def _grouped(content: Any, path: Path) -> dict[str, list[str]] | None:
    """References of {id: [captions]}, or of a list of image_id and caption in which an image has many rows;
    None for other layouts."""
    if (
        isinstance(content, list)
        and content
        and all(isinstance(row, dict) and "image_id" in row for row in content)
    ):
        found: dict[str, list[str]] = {}
        for image, caption in _pairs(content, path):
            found.setdefault(image, []).append(caption)
        return found
    if isinstance(content, dict) and content and all(isinstance(said, list) for said in content.values()):
        return {image: [_reference(one, path, image) for one in said] for image, said in content.items()}
    return None


def _reference(value: Any, path: Path, image: str) -> str:
    text = value.get("caption") if isinstance(value, dict) else value
    if not isinstance(text, str):
        raise DataError(f"{path}, image {image}: a reference must be a text, found {str(value)[:80]}")
    return text


def _coco(content: dict[str, Any], path: Path) -> dict[str, list[str]]:
    images = content.get("images", [])
    if not isinstance(images, list):
        raise DataError(f"{path}: `images` must be a list, found {_kind(images)}")
    order = [str(image["id"]) for image in images if isinstance(image, dict) and "id" in image]
    captions: dict[str, list[str]] = {image: [] for image in order}
    for image, caption in _pairs(content["annotations"], path):
        captions.setdefault(image, []).append(caption)
    return {image: found for image, found in captions.items() if found}


def _karpathy(images: list[Any], path: Path, split: str | None) -> dict[str, list[str]]:
    splits: Counter[str] = Counter()
    captions: dict[str, list[str]] = {}
    names = []
    for place, image in enumerate(images):
        if not isinstance(image, dict) or not isinstance(image.get("sentences"), list):
            raise DataError(
                f"{path}, image {place}: a Karpathy file lists `sentences` for each image; this is "
                f"{_kind(image)} without them"
            )
        own = "train" if image.get("split") == "restval" else str(image.get("split"))
        splits[own] += 1
        if split in (None, own):
            name = str(image.get("cocoid", image.get("imgid", image.get("filename"))))
            names.append(name)
            captions[name] = [_sentence(sentence, path, name) for sentence in image["sentences"]]
    refuse_duplicates(names, path)
    if not captions:
        found = ", ".join(f"{name} ({number})" for name, number in splits.items())
        raise DataError(f"{path}: no image belongs to split {split!r}; the file has {found or 'no images'}")
    return captions


def _sentence(sentence: Any, path: Path, image: str) -> str:
    if isinstance(sentence, dict) and isinstance(sentence.get("raw"), str):
        return sentence["raw"]
    if isinstance(sentence, dict) and isinstance(sentence.get("tokens"), list):
        return " ".join(map(str, sentence["tokens"]))
    raise DataError(f"{path}, image {image}: a sentence has neither `raw` nor `tokens`")


def _pairs(rows: list[Any], path: Path) -> Iterable[tuple[str, str]]:
    for place, row in enumerate(rows):
        if (
            not isinstance(row, dict)
            or not isinstance(row.get("image_id"), int | str)
            or not isinstance(row.get("caption"), str)
        ):
            raise DataError(
                f"{path}, row {place}: expected an image_id and a caption (a text), found {str(row)[:80]}"
            )
        yield str(row["image_id"]), row["caption"]


def _refuse_split(split: str | None, path: Path) -> None:
    if split is not None:
        raise DataError(f"{path}: holds no splits, so {split!r} cannot be chosen; leave --split out")


def _is_picture(file: Path) -> bool:
    return file.suffix.lower() in PICTURE_SUFFIXES


def _text(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8")
    except FileNotFoundError:
        raise DataError(f"{path}: there is no such file") from None
    except UnicodeDecodeError as error:
        raise DataError(f"{path}: is not UTF-8 text ({error.reason} at byte {error.start})") from None


def parsed(path: Path) -> Any:
    """Content of a JSON file; raises DataError where it is missing or no JSON."""
    try:
        return json.loads(_text(path))
    except json.JSONDecodeError as error:
        raise DataError(f"{path}, line {error.lineno}: is not JSON ({error.msg})") from None


def _kind(value: Any) -> str:
    names: dict[type, str] = {dict: "an object", list: "a list", str: "a text"}
    return names.get(type(value), type(value).__name__)
