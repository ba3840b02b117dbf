"""Reads the files of CHAIR: the objects of pictures, and the words that name them."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

from patchword.data.formats.complaints import raise_at_once, read_text
from patchword.errors import DataError
from patchword.metrics.files import parsed
from patchword.text.coco_objects import synonyms_in
from patchword.text.words import with_plurals


def read_objects(path: Path) -> dict[str, set[str]]:
    """Reads objects by image id: COCO instances JSON (names of categories), or `{"42": ["dog", "ball"]}`.

    Raises DataError for other content.
    """
    content = parsed(path)
    if isinstance(content, dict) and {"images", "annotations", "categories"} <= content.keys():
        try:
            names = {category["id"]: category["name"] for category in content["categories"]}
            objects: dict[str, set[str]] = {str(image["id"]): set() for image in content["images"]}
            for row in content["annotations"]:
                objects.setdefault(str(row["image_id"]), set()).add(names[row["category_id"]])
        except (KeyError, TypeError) as error:
            raise DataError(
                f"{path}: a COCO instances file lacks {error} in an image, a category or an annotation"
            ) from None
        return objects
    if isinstance(content, dict) and all(
        isinstance(names, list) and all(isinstance(n, str) for n in names) for names in content.values()
    ):
        return {str(image): set(names) for image, names in content.items()}
    raise DataError(
        f"{path}: expected COCO instances (images, annotations, categories) "
        'or an object such as {"42": ["dog", "ball"]}'
    )


def read_synonyms(path: Path) -> dict[str, str]:
    """Reads phrase -> object, plurals included.

    Each line holds an object and, after commas, other phrases that name it. Raises DataError for a file
    that cannot be read as UTF-8, or a phrase that names two objects.
    """
    return synonyms_in(read_text(path, raise_at_once), str(path))


def own_names(objects: Iterable[str]) -> dict[str, str]:
    """Without a list of synonyms, every object is named by its own name and its plural."""
    return with_plurals({name.lower(): name for name in objects})
