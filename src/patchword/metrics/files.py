"""Reads predictions and references as the field writes them; every image id becomes a string."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from patchword.errors import DataError


def read_predictions(path: Path) -> dict[str, str]:
    """Captions by image id from a COCO results file: `[{"image_id": 42, "caption": "a dog"}, ...]`.

    Raises DataError where the file is no such list, or an image stands in it twice.
    """
    rows = parsed(path)
    if not isinstance(rows, list):
        raise DataError(
            f"{path}: a COCO results file is a list of image_id and caption, this is {_kind(rows)}"
        )
    pairs = list(_pairs(rows, path))
    _refuse_duplicates((image for image, _ in pairs), path)
    return dict(pairs)


def read_prediction_files(path: Path) -> dict[str, dict[str, str]]:
    """Predictions by name: of one file, or of every .json file of a folder."""
    if not path.is_dir():
        return {path.stem: read_predictions(path)}
    files = sorted(path.glob("*.json"))
    if not files:
        raise DataError(f"{path}: the folder holds no .json file; expected COCO results files")
    return {file.stem: read_predictions(file) for file in files}


def read_references(path: Path, split: str | None = None) -> dict[str, list[str]]:
    """Reference captions by image id, untouched, in the order of the file.

    COCO captions JSON, Karpathy JSON (`split` chooses images; train includes restval), a folder of `ID.txt` with one caption per line, or
    any other format that a training reads. Raises DataError where the file is none of these or `split` finds nothing.
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
    from patchword.data.formats.readers import read_captions, split_records

    records = read_captions(path)
    chosen = split_records(records, split) if split else records
    return {str(record.image_id): list(record.captions) for record in chosen}


def find_images(references: Path, images: Path, wanted: Iterable[str]) -> dict[str, Path]:
    """The picture of each image id in a folder: by the file name in the references, else a file called by the id.

    Raises DataError listing the images that have none.
    """
    content = parsed(references) if references.suffix == ".json" else None
    entries = content.get("images") if isinstance(content, dict) else None
    names: dict[str, list[str]] = {}
    for entry in entries if isinstance(entries, list) else []:
        if "file_name" in entry:
            names[str(entry.get("id"))] = [entry["file_name"]]
        elif "filename" in entry:
            image, name = str(entry.get("cocoid", entry.get("imgid", entry["filename"]))), entry["filename"]
            names[image] = [f"{entry['filepath']}/{name}", name] if "filepath" in entry else [name]
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
            f"{images}: {len(missing)} images have no picture there, the first is {missing[0]} (looked for {tried})"
        )
    return found


def _coco(content: dict[str, Any], path: Path) -> dict[str, list[str]]:
    order = [
        str(image["id"]) for image in content.get("images", []) if isinstance(image, dict) and "id" in image
    ]
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
                f"{path}, image {place}: a Karpathy file lists `sentences` for each image; this is {_kind(image)} without them"
            )
        own = "train" if image.get("split") == "restval" else str(image.get("split"))
        splits[own] += 1
        if split in (None, own):
            name = str(image.get("cocoid", image.get("imgid", image.get("filename"))))
            names.append(name)
            captions[name] = [_sentence(sentence, path, name) for sentence in image["sentences"]]
    _refuse_duplicates(names, path)
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


def _refuse_duplicates(images: Iterable[str], path: Path) -> None:
    twice = [image for image, number in Counter(images).items() if number > 1]
    if twice:
        more = ", ..." if len(twice) > 10 else ""
        raise DataError(
            f"{path}: {len(twice)} image ids stand more than once ({', '.join(twice[:10])}{more}); each image has one entry"
        )


def _refuse_split(split: str | None, path: Path) -> None:
    if split is not None:
        raise DataError(f"{path}: holds no splits, so {split!r} cannot be chosen; leave --split out")


def _is_picture(file: Path) -> bool:
    return file.suffix.lower() in (".jpg", ".jpeg", ".png", ".webp")


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
    return {dict: "an object", list: "a list", str: "a text"}.get(type(value), type(value).__name__)
