"""Searches an index of pictures for the service, and labels pictures with the same towers."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from PIL import Image

from patchword.data.pictures import open_picture
from patchword.errors import DataError, PictureError
from patchword.serve.abilities import Hit
from patchword.serve.refusals import unknown_words

_THUMBNAIL = (240, 240)


class PictureIndex(Protocol):
    """The interface of an index; `patchword.search.index.open_index` returns one.

    Results have `path` and `score`.
    """

    def search(self, query_E: np.ndarray, k: int) -> Sequence[Any]:
        """Returns the k pictures nearest to a unit vector, best first."""


class TwoTowers(Protocol):
    """The interface of two towers; `patchword.tasks.retrieve.load.load_two_towers` returns one."""

    def embed_texts(self, texts: Sequence[str]) -> np.ndarray:
        """Returns one unit vector per text."""

    def label(self, pictures: Sequence[Image.Image], labels: Sequence[str]) -> np.ndarray:
        """Returns the probability of each label for each picture."""


class IndexSearch:
    """Searches an index by words.

    Paths come from the index only; a request contains words only. The answer shows file names without their
    folders.
    """

    def __init__(self, index: PictureIndex, towers: TwoTowers) -> None:
        self._index, self._towers = index, towers

    def search(self, text: str, k: int) -> list[Hit]:
        """Returns the k nearest pictures, best first.

        Raises `Refusal` for a text without a word that the model knows.
        """
        try:
            vector_E = self._towers.embed_texts([text])[0]
        except DataError as error:
            raise unknown_words(error) from error
        return [
            Hit(Path(one.path).name, float(one.score), _small(one.path))
            for one in self._index.search(vector_E, k)
        ]


class TowerLabels:
    """Labels a picture by the cosines of picture and prompts."""

    def __init__(self, towers: TwoTowers) -> None:
        self._towers = towers

    def label(self, picture: Image.Image, labels: Sequence[str]) -> list[tuple[str, float]]:
        """Returns (label, probability), best first.

        Raises `Refusal` for labels without a word that the model knows.
        """
        try:
            shares = self._towers.label([picture], labels)[0]
        except DataError as error:
            raise unknown_words(error) from error
        return sorted(zip(labels, map(float, shares), strict=True), key=lambda pair: -pair[1])


def _small(path: str) -> Image.Image | None:
    try:
        picture = open_picture(path)
    # The file was moved or damaged after indexing; the hit is shown by its name.
    except PictureError:
        return None
    picture.thumbnail(_THUMBNAIL)
    return picture
