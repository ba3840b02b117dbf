"""`prototypes.json` of a model folder: what the prototypes of its memory stand for, as text that needs no
model to be read.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from patchword.errors import ModelError

FILE = "prototypes.json"


def context_words(
    decode: Callable[[Sequence[int]], str], placement: str, concepts: Sequence[str]
) -> Callable[[list[int]], str]:
    """How the memory's contexts become text: the words up to a key; for prototypes over patches, the patch
    and its concept. The number of the picture counts within one training step and tells a reader nothing.
    """

    def words(context: list[int]) -> str:
        return decode(context) or "(beginning of a caption)"

    def patch(context: list[int]) -> str:
        _, number, *concept = context
        return f"patch {number}" + (f": {concepts[concept[0]]}" if concept and concepts else "")

    return words if placement == "self_concat" else patch


def read_prototypes(model: Path) -> dict[str, Any]:
    """The content of `prototypes.json`, or of that file in a model folder. Raises ModelError where the model
    has no memory, where the file of one that has a memory is missing, or where it is not what it should
    be."""
    path = model / FILE if model.is_dir() else model
    if not path.is_file():
        raise ModelError(_why_missing(model))
    try:
        described = json.loads(path.read_text(encoding="utf-8"))
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise ModelError(
            f"{path} is not JSON ({error}); copy it anew from where the model was trained"
        ) from error
    if not isinstance(described, dict) or not {"placement", "layers"} <= set(described):
        raise ModelError(
            f"{path} lists no prototypes: 'placement' and 'layers' are expected; copy it anew from the "
            "trained model"
        )
    return described


def _why_missing(model: Path) -> str:
    config = model / "config.json"
    if not config.is_file():
        return f"{model} is neither a model folder (it has no config.json) nor a file of prototypes"
    captioner = json.loads(config.read_text(encoding="utf-8")).get("captioner") or {}
    if captioner.get("memory") is None:
        kind = captioner.get("kind", "no captioner")
        return f"{model} has no prototype memory: it is {kind}, and its configuration has no captioner.memory"
    return (
        f"{model} has a prototype memory, and its {FILE} is missing: copy the folder anew from where it was "
        "trained"
    )


def nearest_captions(described: dict[str, Any]) -> dict[int, tuple[str, ...]]:
    """The training contexts of the last decoder layer's prototypes, each once, by the index that
    `Caption.prototypes` gives.
    """
    last = described["layers"][-1]
    return {
        index: tuple(dict.fromkeys(prototype["contexts"]))
        for index, prototype in enumerate(last)
        if prototype["contexts"]
    }
