"""Objects of pictures from COCO's instances JSON: their boxes, by the name of their category.

{"images": [{"id", "file_name", "width", "height"}], "categories": [{"id", "name"}],
 "annotations": [{"image_id", "category_id", "bbox": [left, top, width, height]}]}
"""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple, TypeGuard

from patchword.data.formats.coco import objects_of
from patchword.data.formats.complaints import (
    Complain,
    clean_file,
    clean_id,
    parse_json,
    raise_at_once,
    read_text,
)
from patchword.errors import DataError

Box = tuple[float, float, float, float]
"""Left, top, right and bottom in pixels."""


class PictureObjects(NamedTuple):
    """The annotated objects of one picture."""

    image_id: int | str
    file: str
    size: tuple[int, int]
    """Width and height in pixels, as the boxes count them."""
    boxes: dict[str, list[Box]]
    """Boxes of each category that is annotated; crowds (`iscrowd`) count as one box."""


def read_instances(path: Path, complain: Complain = raise_at_once) -> list[PictureObjects]:
    """Every picture of the file, in its order, also those without an object.

    Raises DataError where the file is missing, is no instances JSON, or an entry cannot be used.
    """
    content = parse_json(read_text(path, complain), str(path), complain)
    expected = "expected COCO instances: an object with images, annotations and categories"
    if not isinstance(content, dict) or not {"images", "annotations", "categories"} <= content.keys():
        raise DataError(f"{path}: {expected}")
    names = {}
    for where, entry in objects_of(content["categories"], f"{path}, categories", complain):
        if isinstance(entry.get("name"), str) and isinstance(entry.get("id"), int):
            names[entry["id"]] = entry["name"].lower()
        else:
            complain("category", where, "a category has a whole number as id and a text as name")
    pictures: dict[int | str, PictureObjects] = {}
    for where, entry in objects_of(content["images"], f"{path}, images", complain):
        image_id, file = (
            clean_id(entry.get("id"), where, complain),
            clean_file(entry.get("file_name"), where, complain),
        )
        width, height = entry.get("width"), entry.get("height")
        if not (_is_length(width) and _is_length(height)):
            complain(
                "size", where, f"width and height are {width!r} and {height!r}: boxes need the picture's size"
            )
        elif image_id in pictures:
            complain("duplicate-id", where, f"the image id {image_id!r} stands twice: ids must be unique")
        elif image_id is not None and file is not None:
            pictures[image_id] = PictureObjects(image_id, file, (int(width), int(height)), {})
    for where, entry in objects_of(content["annotations"], f"{path}, annotations", complain):
        _add_object(entry, where, names, pictures, complain)
    return list(pictures.values())


def _add_object(
    entry: dict[str, Any],
    where: str,
    names: dict[int, str],
    pictures: dict[int | str, PictureObjects],
    complain: Callable[[str, str, str], None],
) -> None:
    image_id, category_id = entry.get("image_id"), entry.get("category_id")
    picture, name = pictures.get(_key(image_id)), names.get(_key(category_id))
    box = entry.get("bbox")
    if picture is None:
        complain("unknown-image", where, f"image_id {image_id!r} is the id of no picture in this file")
    elif name is None:
        complain("category", where, f"category_id {category_id!r} is the id of no category")
    elif not (isinstance(box, list) and len(box) == 4 and all(_is_number(one) for one in box)):
        complain("box", where, f"bbox is {box!r}, expected left, top, width and height in pixels")
    elif box[2] <= 0 or box[3] <= 0:
        complain("box", where, f"bbox {box!r} has no area: width and height must be greater than 0")
    else:
        left, top, width, height = map(float, box)
        picture.boxes.setdefault(name, []).append((left, top, left + width, top + height))


def _key(value: object) -> Any:
    """What can be the id of something; None for lists and objects, which cannot."""
    return value if isinstance(value, int | str) else None


def _is_number(value: object) -> TypeGuard[float]:
    return isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value)


def _is_length(value: object) -> TypeGuard[float]:
    return _is_number(value) and value >= 1
