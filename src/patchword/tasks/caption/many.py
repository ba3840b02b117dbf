"""Captions as the work of a job (`jobs/`): a model is loaded once per process and given batches."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from PIL import Image

from patchword.tasks.caption.load import load
from patchword.tasks.caption.options import DecodingOptions

COLUMNS = {"caption": "string", "score": "double", "complete": "bool", "model": "string"}


class Captions:
    """Pictures to captions; the settings are those of `patchword caption`, as plain values."""

    def __init__(self, model: str, device: str | None, options: dict[str, Any]) -> None:
        chosen = {**options, "mention": tuple(options.get("mention", ()))}
        self._model, self._name, self._options = load(model, device), model, DecodingOptions(**chosen)

    def __call__(self, pictures: Sequence[Image.Image]) -> list[dict[str, Any]]:
        """One row per picture."""
        return [
            {"caption": one.text, "score": one.log_probability}
            | {"complete": one.complete, "model": self._name}
            for one in self._model.caption(list(pictures), options=self._options)
        ]
