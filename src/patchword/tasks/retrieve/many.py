"""What two towers say of many pictures, as the work of a job (`jobs/`): labels, vectors, or whether a text
fits."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from PIL import Image

from patchword.data.isolated import PictureReader
from patchword.errors import PictureError
from patchword.jobs.rules import Pair
from patchword.tasks.retrieve.load import load_two_towers

LABEL_COLUMNS = {"label": "string", "probability": "double", "probabilities": "floats"}
VECTOR_COLUMNS = {"vector": "floats"}


class Labels:
    """Pictures to the likeliest of some labels; `probabilities` has them all in the order of the labels."""

    def __init__(self, model: str, device: str | None, labels: Sequence[str]) -> None:
        self._towers, self._labels = load_two_towers(model, device), list(labels)

    def __call__(self, pictures: Sequence[Image.Image], names: Sequence[str]) -> list[dict[str, Any]]:
        """One row per picture."""
        shares_BL = self._towers.label(list(pictures), self._labels)
        return [
            {"label": self._labels[int(shares_L.argmax())], "probability": float(shares_L.max())}
            | {"probabilities": shares_L.tolist()}
            for shares_L in shares_BL
        ]


class Vectors:
    """Pictures to unit vectors."""

    def __init__(self, model: str, device: str | None) -> None:
        self._towers = load_two_towers(model, device)

    def __call__(self, pictures: Sequence[Image.Image], names: Sequence[str]) -> list[dict[str, Any]]:
        """One row per picture."""
        return [{"vector": vector_E.tolist()} for vector_E in self._towers.embed_images(list(pictures))]


class Score:
    """A rule of `jobs/filter.py`: pairs whose cosine of picture and text is too low."""

    name = "score"

    def __init__(self, model: str, least: float, reader: PictureReader | None = None) -> None:
        """`reader` may be shared with other rules."""
        self._towers, self.least = load_two_towers(model), least
        self._reader = reader or PictureReader()

    def __call__(self, pairs: Sequence[Pair]) -> list[str | None]:
        """See `jobs.rules.Rule`; a text without a known word goes, a pair without a picture stays."""
        whys: list[str | None] = [None] * len(pairs)
        known = [place for place, pair in enumerate(pairs) if self._towers.knows(pair.text)]
        for place in set(range(len(pairs))) - set(known):
            whys[place] = "no word that the model knows"
        seen, pictures = [], []
        for place in known:
            content = pairs[place].content
            if content is None:
                continue
            try:
                pictures.append(self._reader.open(content, name=pairs[place].name))
                seen.append(place)
            except PictureError as error:
                whys[place] = str(error)
        if seen:
            cosines = (
                self._towers.embed_images(pictures)
                * self._towers.embed_texts([pairs[place].text for place in seen])
            ).sum(1)
            for place, cosine in zip(seen, cosines.tolist(), strict=True):
                whys[place] = None if cosine >= self.least else f"cosine {cosine:.3f}"
        return whys
