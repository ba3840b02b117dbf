"""Any model by its name: what `patchword.load` is."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from patchword import checkpoint
from patchword.errors import ModelError
from patchword.tasks import align, answer, caption, classify, retrieve

LOADERS = {
    "caption": caption.load,
    "retrieve": retrieve.load_two_towers,
    "align": align.load_alignment,
    "answer": answer.load_answerer,
    "classify": classify.load_classifier,
}
"""Per task the function that loads its models."""


def load(name: str | Path, device: str | None = None) -> Any:
    """A model by the name of a shipped one, a folder, or a hub id of a Patchword folder; `hub:ID` is a captioner of transformers.

    What comes back can `caption` pictures, `label` and embed them, or be `ask`ed about them, as the model was trained to.
    Raises ModelError when there is no such model, or its folder is incomplete or of another format.
    """
    if str(name).startswith("hub:"):
        return caption.load(name, device)
    folder = caption.find_model(name)
    task = checkpoint.read_config(folder).get("task")
    if task not in LOADERS:
        raise ModelError(f"{folder} is a model for {task!r}; this version of Patchword has: {', '.join(LOADERS)}")
    return LOADERS[task](folder, device)


def task_of(name: str | Path) -> str:
    """What a model is for. Raises ModelError when there is no such model."""
    return "caption" if str(name).startswith("hub:") else str(checkpoint.read_config(caption.find_model(name)).get("task"))
