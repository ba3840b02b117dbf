"""Names of ImageNet's 1,000 classes, and for each the common word that a caption would use.

The classes are finer than captions: 118 of them are breeds of dogs, and all have the common word "dog". The
names and their licence are in `imagenet_classes.json`.
"""

from __future__ import annotations

import json
from functools import cache
from pathlib import Path
from typing import NamedTuple


class ImageNetClass(NamedTuple):
    """One output of an ImageNet classifier."""

    name: str
    word: str
    """The caption's word: one word, or two where one alone would mean something else ("hot dog")."""


@cache
def imagenet_classes() -> tuple[ImageNetClass, ...]:
    """Returns the classes in the order of a classifier's outputs."""
    path = Path(__file__).with_name("imagenet_classes.json")
    content = json.loads(path.read_text(encoding="utf-8"))
    return tuple(ImageNetClass(*row) for row in content["classes"])


@cache
def common_words() -> dict[str, tuple[int, ...]]:
    """Returns for each common word its classes; the words are in the order of their first class.

    The probability of a word is the sum over its classes.
    """
    classes: dict[str, list[int]] = {}
    for number, one in enumerate(imagenet_classes()):
        classes.setdefault(one.word, []).append(number)
    return {word: tuple(numbers) for word, numbers in classes.items()}
