"""Model folders as tasks use them: found by name, settings and vocabulary read, weights restored, card
written.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

import torch
from pydantic import BaseModel
from torch import nn

from patchword import hub
from patchword.checkpoints import folder as checkpoint
from patchword.checkpoints.facts import ModelFacts
from patchword.checkpoints.folder import SHIPPED as SHIPPED
from patchword.checkpoints.folder import find_model as find_model
from patchword.checkpoints.folder import shipped_models as shipped_models
from patchword.composed import TowerModel, TowerSettings, build_tower
from patchword.config import validate
from patchword.errors import ModelError, PatchwordError
from patchword.tensors import build_to_fit
from patchword.text.pieces import Pieces
from patchword.text.subwords import Subwords, vocabulary_from_json
from patchword.text.words import Vocabulary
from patchword.towers import layered
from patchword.towers.settings import TowerConfig

log = logging.getLogger("patchword")

Settings = TypeVar("Settings", bound=BaseModel)


_ABOUT = ("format", "patchword", "task", "facts", "files")
"""Keys of config.json that are no settings."""


def read_settings(
    folder: Path, task: str, schema: type[Settings], beside: tuple[str, ...] = ()
) -> tuple[Settings, ModelFacts]:
    """What config.json of a model folder says: the settings of the task, and the facts about the model.

    Files that are not too large are compared with the SHA-256 that it records; where it records none, that
    is logged. `beside` names sections of another part of the model.

    Raises ModelError for a model of another task or a damaged file, ConfigError for settings that are none of
    the schema.
    """
    config = checkpoint.read_config(folder)
    if config.get("task") != task:
        raise ModelError(f"{folder} is a model for {config.get('task')!r}, and one for {task!r} is needed")
    where = folder / "config.json"
    settings = {key: value for key, value in config.items() if key not in (*_ABOUT, *beside)}
    facts = validate(config.get("facts", {}), ModelFacts, f"{where}, facts")
    checkpoint.check_files(folder, config)
    if not config.get("files"):
        log.warning(
            "%s was written by an early version that recorded no SHA-256: damage would not be noticed: "
            "`patchword models --check %s --record` looks at it and records them",
            *(folder, folder),
        )
    found = {**facts.sources, **hub.snapshot_of(folder)}
    named = facts.model_copy(update={"name": facts.name or folder.name, "sources": found})
    return validate(settings, schema, str(where)), named


def read_vocabulary(folder: Path, size: int) -> Vocabulary | Subwords | Pieces:
    """vocab.json of a model folder.

    Raises ModelError where it is none, or has another size than config.json says.
    """
    content = checkpoint.read_vocabulary(folder)
    try:
        vocabulary = vocabulary_from_json(content)
    except (PatchwordError, KeyError, TypeError, ValueError, AttributeError) as error:
        said = " ".join(str(error).split())[:200]
        raise ModelError(
            f"{folder / 'vocab.json'} holds no vocabulary ({said}): copy the folder anew"
        ) from error
    if vocabulary.size != size:
        raise ModelError(
            f"{folder}: vocab.json has {vocabulary.size} tokens, config.json says {size}: the folder is "
            "mixed up"
        )
    return vocabulary


def portable(settings: Any, model: TowerModel) -> tuple[Any, dict[str, torch.Tensor]]:
    """Settings and weights as a model folder holds them: a frozen public tower by id, revision and digest,
    any other by value.
    """
    weights = model.state_dict()
    source = settings.tower.source if isinstance(settings.tower, TowerConfig) else None
    if source is not None and settings.tower.trainable_from is None and not Path(source).exists():
        commit = published_commits(model.tower).get(source, settings.tower.revision)
        tower = settings.tower.model_copy(update={"revision": commit})
        digest = checkpoint.tower_digest(model.tower)
        settings = settings.model_copy(update={"tower": tower, "tower_sha256": digest})
        return settings, {name: tensor for name, tensor in weights.items() if not _is_published(name)}
    return settings.model_copy(update={"tower": layered.by_value(model.tower)}), weights


def published_commits(model: nn.Module) -> dict[str, str]:
    """The commits of the hub that parts of a model were read from, by id."""
    found = {}
    for module in model.modules():
        config = getattr(module, "config", None)
        source, commit = getattr(config, "_name_or_path", ""), getattr(config, "_commit_hash", None)
        if commit and source and not Path(source).exists():
            found[str(source)] = str(commit)
    return found


def build_checked(folder: Path, build: Callable[[], nn.Module], prefix: str = "") -> Any:
    """A model with the weights of a folder, whose sizes bound what is built.

    Raises ModelError where config.json describes no model, or one of other sizes.
    """
    stored = checkpoint.stored_shapes(folder, prefix)
    model = build_to_fit(build, stored, folder / checkpoint.WEIGHTS, folder / "config.json")
    checkpoint.load_weights(model, folder, prefix)
    return model


def build_over_tower(
    folder: Path, tower: TowerSettings, tower_sha256: str | None, build: Callable[[nn.Module], Any]
) -> Any:
    """Builds as `build_checked` does, for a model over a tower; a tower that the folder names by reference
    must be the one that the model was trained with.

    Raises ModelError when sizes, tensors or the tower differ.
    """
    if tower_sha256 is None:
        return build_checked(folder, lambda: build(build_tower(tower)))
    published = build_tower(tower)
    check_published(published, folder, tower_sha256)
    stored = checkpoint.stored_shapes(folder)
    where = folder / checkpoint.WEIGHTS
    model = build_to_fit(lambda: build(published), stored, where, folder / "config.json", _is_published)
    checkpoint.load_weights(model, folder, without=_is_published)
    return model


def restore_weights(model: TowerModel, folder: Path, tower_sha256: str | None) -> None:
    """Weights of a model folder into a model that is there; a tower that the folder names by reference must
    be the one that the model has.

    Raises ModelError when tensors or the tower differ.
    """
    if tower_sha256 is None:
        checkpoint.load_weights(model, folder)
        return
    check_published(model.tower, folder, tower_sha256)
    for name, part in model.named_children():
        if name != "tower":
            checkpoint.load_weights(part, folder, f"{name}.")
    if getattr(model.tower, "adapters", ()):
        checkpoint.load_weights(model.tower.adapters, folder, "tower.adapters.")


def _is_published(name: str) -> bool:
    """Whether a weight belongs to the published part of the tower, which a folder may name instead of holding
    it.
    """
    return name.startswith("tower.") and not name.startswith("tower.adapters.")


def check_published(tower: torch.nn.Module, folder: Path, tower_sha256: str) -> None:
    """Raises ModelError where a tower that a model folder names by reference is not the one that it was
    trained with.
    """
    found = checkpoint.tower_digest(tower)
    if found != tower_sha256:
        raise ModelError(
            f"{folder} was trained with a tower of SHA-256 {tower_sha256[:12]}..., and its id now gives "
            f"{found[:12]}...: "
            "give its revision under tower.revision in config.json"
        )
