"""What two towers say of many pictures, as the work of a job (`jobs/`): labels or vectors."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from PIL import Image

from patchword.tasks.retrieve.load import load_two_towers

LABEL_COLUMNS = {"label": "string", "probability": "double", "probabilities": "floats"}
VECTOR_COLUMNS = {"vector": "floats"}


class Labels:
    """Pictures to the likeliest of some labels; `probabilities` has them all in the order of the labels."""

    def __init__(self, model: str, device: str | None, labels: Sequence[str]) -> None:
        self._towers, self._labels = load_two_towers(model, device), list(labels)

    def __call__(self, pictures: Sequence[Image.Image]) -> list[dict[str, Any]]:
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

    def __call__(self, pictures: Sequence[Image.Image]) -> list[dict[str, Any]]:
        """One row per picture."""
        return [{"vector": vector_E.tolist()} for vector_E in self._towers.embed_images(list(pictures))]
