"""Words and phrases that name COCO's 80 categories, and lists of such words in general."""

from __future__ import annotations

from pathlib import Path

from patchword.errors import DataError
from patchword.text.words import with_plurals

COCO_SYNONYMS = Path(__file__).with_name("coco_objects.txt")
"""The list that comes with the package."""


def coco_words() -> dict[str, str]:
    """Returns phrase -> category, plurals included."""
    return synonyms_in(COCO_SYNONYMS.read_text(encoding="utf-8"), str(COCO_SYNONYMS))


def synonyms_in(listed: str, name: str) -> dict[str, str]:
    """Returns phrase -> object, plurals included, of a list that `name` names in errors: each line holds an
    object and, after commas, other phrases that name it.

    Raises DataError for a phrase that names two objects.
    """
    synonyms: dict[str, str] = {}
    for number, line in enumerate(listed.split("\n"), 1):
        phrases = [" ".join(phrase.lower().split()) for phrase in line.split(",") if phrase.strip()]
        for phrase in phrases:
            if synonyms.setdefault(phrase, phrases[0]) != phrases[0]:
                raise DataError(
                    f"{name}, line {number}: {phrase!r} names both {synonyms[phrase]!r} and {phrases[0]!r}; "
                    "keep it with one"
                )
    return with_plurals(synonyms)
