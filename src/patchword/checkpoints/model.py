"""Model folders as tasks use them: found by name, settings and vocabulary read, weights restored, card written."""

from __future__ import annotations

from pathlib import Path
from typing import Any, TypeVar

import torch
from pydantic import BaseModel

from patchword.checkpoints import folder as checkpoint
from patchword.composed import TowerModel
from patchword.config import validate
from patchword.errors import ModelError
from patchword.text.subwords import Subwords, vocabulary_from_json
from patchword.text.words import Vocabulary
from patchword.towers import layered
from patchword.towers.settings import TowerConfig

_HUB = "hub:"
SHIPPED = Path(__file__).resolve().parent.parent / "pretrained"


Settings = TypeVar("Settings", bound=BaseModel)


def read_settings(folder: Path, task: str, schema: type[Settings]) -> tuple[Settings, dict[str, Any]]:
    """What config.json of a model folder says: the settings of the task, and the facts about its training.

    Raises ModelError for a model of another task, ConfigError for settings that are none of the schema.
    """
    config = checkpoint.read_config(folder)
    if config.get("task") != task:
        raise ModelError(f"{folder} is a model for {config.get('task')!r}, and one for {task!r} is needed")
    named = {key: value for key, value in config.items() if key in schema.model_fields}
    card = {
        key: value
        for key, value in config.items()
        if key not in schema.model_fields and key not in ("format", "patchword", "task")
    }
    return validate(named, schema, str(folder / "config.json")), card


def read_vocabulary(folder: Path, size: int) -> Vocabulary | Subwords:
    """vocab.json of a model folder. Raises ModelError where it has another size than config.json says."""
    vocabulary = vocabulary_from_json(checkpoint.read_vocabulary(folder))
    if vocabulary.size != size:
        raise ModelError(
            f"{folder}: vocab.json has {vocabulary.size} tokens, config.json says {size}: the folder is mixed up"
        )
    return vocabulary


def portable(settings: Any, model: TowerModel) -> tuple[Any, dict[str, torch.Tensor]]:
    """Settings and weights as a model folder holds them: a frozen public tower by id, revision and digest, any other by value."""
    weights = model.state_dict()
    source = settings.tower.source if isinstance(settings.tower, TowerConfig) else None
    if source is not None and settings.tower.trainable_from is None and not Path(source).exists():
        settings = settings.model_copy(update={"tower_sha256": checkpoint.tower_digest(model.tower)})
        own = {name: tensor for name, tensor in weights.items() if not name.startswith("tower.")}
        return settings, own | {
            name: tensor for name, tensor in weights.items() if name.startswith("tower.adapters.")
        }
    return settings.model_copy(update={"tower": layered.by_value(model.tower)}), weights


def restore_weights(
    model: TowerModel, reader: torch.nn.Module, prefix: str, folder: Path, tower_sha256: str | None
) -> None:
    """Weights of a model folder; a tower that the folder names by reference must be the one that it was trained with. `reader` is the
    model's part behind the tower, whose weights begin with `prefix`.

    Raises ModelError when tensors or the tower differ.
    """
    if tower_sha256 is None:
        checkpoint.load_weights(model, folder)
        return
    check_published(model.tower, folder, tower_sha256)
    checkpoint.load_weights(reader, folder, prefix)
    if getattr(model.tower, "adapters", ()):
        checkpoint.load_weights(model.tower.adapters, folder, "tower.adapters.")


def check_published(tower: torch.nn.Module, folder: Path, tower_sha256: str) -> None:
    """Raises ModelError where a tower that a model folder names by reference is not the one that it was trained with."""
    found = checkpoint.tower_digest(tower)
    if found != tower_sha256:
        raise ModelError(
            f"{folder} was trained with a tower of SHA-256 {tower_sha256[:12]}..., and its id now gives {found[:12]}..."
        )


def shipped_models() -> list[str]:
    """Names of the models that come with the package."""
    return sorted(folder.parent.name for folder in SHIPPED.glob("*/config.json"))


def is_hub(name: str | Path) -> bool:
    """Whether a name stands for a published model of transformers: `hub:ID`."""
    return str(name).startswith(_HUB)


def hub_id(name: str | Path) -> str:
    """The id in `hub:ID`."""
    return str(name).removeprefix(_HUB)


def find_model(name: str | Path) -> Path:
    """The folder of a model. Raises ModelError listing the shipped names when nothing is found."""
    for folder in (Path(name), SHIPPED / str(name)):
        if (folder / "config.json").exists():
            return folder
    if Path(name).exists() or str(name).count("/") != 1 or str(name).startswith((".", "/")):
        raise ModelError(
            f"no model at {name}: give a folder with config.json, a hub id, or one of: {', '.join(shipped_models()) or 'none shipped'}"
        )
    from huggingface_hub import snapshot_download

    try:
        return Path(snapshot_download(str(name)))
    except Exception as error:  # huggingface_hub raises many kinds; all mean that the folder cannot be had
        raise ModelError(f"no folder {name}, and the hub did not give it either: {error}") from error


def model_card(card: dict[str, Any]) -> str:
    """README.md of a model folder from the facts that config.json records."""
    lines = [
        f"# {card.get('name', 'A captioning model')}",
        "",
        str(card.get("description", "Made with Patchword.")),
        "",
    ]
    for key, value in card.items():
        if isinstance(value, dict):
            value = ", ".join(f"{name} {number}" for name, number in value.items())
        if key not in ("name", "description"):
            lines.append(f"* **{key}**: {value}")
    return "\n".join(lines) + "\n"
