"""An index of pictures, for the service: the words of a request in, pictures with small copies out; labels by the same towers."""

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
    """`patchword.search.index.open_index` gives one; its results have `path` and `score`."""

    def search(self, query_E: np.ndarray, k: int) -> Sequence[Any]: ...


class TwoTowers(Protocol):
    """`patchword.tasks.retrieve.load.load_two_towers` gives one."""

    def embed_texts(self, texts: Sequence[str]) -> np.ndarray: ...

    def label(self, pictures: Sequence[Image.Image], labels: Sequence[str]) -> np.ndarray: ...


class IndexSearch:
    """The paths are those that the index remembers: a request brings words only. What is shown is the file's name without its folders."""

    def __init__(self, index: PictureIndex, towers: TwoTowers) -> None:
        self._index, self._towers = index, towers

    def search(self, text: str, k: int) -> list[Hit]:
        """The k nearest pictures, best first. Raises `Refusal` for a text without a word that the model knows."""
        try:
            vector_E = self._towers.embed_texts([text])[0]
        except DataError as error:
            raise unknown_words(error) from error
        return [
            Hit(Path(one.path).name, float(one.score), _small(one.path))
            for one in self._index.search(vector_E, k)
        ]


class TowerLabels:
    """Which label fits a picture, by the cosine of picture and prompts."""

    def __init__(self, towers: TwoTowers) -> None:
        self._towers = towers

    def label(self, picture: Image.Image, labels: Sequence[str]) -> list[tuple[str, float]]:
        """(label, probability), best first. Raises `Refusal` for labels without a word that the model knows."""
        try:
            shares = self._towers.label([picture], labels)[0]
        except DataError as error:
            raise unknown_words(error) from error
        return sorted(zip(labels, map(float, shares), strict=True), key=lambda pair: -pair[1])


def _small(path: str) -> Image.Image | None:
    try:
        picture = open_picture(path)
    except PictureError:  # moved or damaged since it was indexed: the hit is shown by its name
        return None
    picture.thumbnail(_THUMBNAIL)
    return picture
