"""The state of an interrupted training, without pickle: tensors in safetensors, everything else in JSON.

There is no generator state: the random numbers of a step are seeded by the run's seed and the number of the
step (see `loop.py`).
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from patchword.errors import ModelError
from patchword.files import write_json
from patchword.tensors import write_tensors

FORMAT = 2
"""Format of training.json. Format 1 knew one optimiser, and not what a stage had started from."""


@dataclass(frozen=True)
class Position:
    """Where a training stands: the next batch to be trained on."""

    stage: int = 0
    epoch: int = 0
    index: int = 0
    """Batches of the epoch that are done."""
    step: int = 0
    """Optimiser steps of the whole run."""
    stage_step: int = 0


def pack_optimiser(optimiser: torch.optim.Optimizer) -> dict[str, Tensor]:
    """Moments and step counts under `<parameter index>.<name>`; the settings of the groups come from the
    configuration.
    """
    packed = {}
    for index, state in optimiser.state_dict()["state"].items():
        for name, value in state.items():
            if value is not None:
                packed[f"{index}.{name}"] = torch.as_tensor(value)
    return packed


def unpack_optimiser(optimiser: torch.optim.Optimizer, packed: dict[str, Tensor]) -> None:
    """Put packed moments back. Raises ModelError when they belong to other parameters."""
    content = optimiser.state_dict()
    count = sum(len(group["params"]) for group in content["param_groups"])
    state: dict[int, dict[str, Tensor]] = {}
    for key, value in packed.items():
        index, _, name = key.partition(".")
        state.setdefault(int(index), {})[name] = value
    if state and max(state) >= count:
        raise ModelError(
            f"the saved optimiser has {max(state) + 1} parameters, this model {count}: resume with the "
            "configuration that began the run"
        )
    content["state"] = state
    optimiser.load_state_dict(content)


def write_state(folder: Path, tensors: dict[str, Tensor], values: dict[str, Any]) -> None:
    """Write the training state beside the model: tensors to training.safetensors, everything else to
    training.json.
    """
    folder.mkdir(parents=True, exist_ok=True)
    write_tensors(folder / "training.safetensors", tensors)
    write_json(folder / "training.json", {"format": FORMAT, **values}, indent=1)


def read_state(folder: Path) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Raises ModelError when the folder holds no training state, or one of another format."""
    try:
        values = json.loads((folder / "training.json").read_text(encoding="utf-8"))
        tensors = load_file(folder / "training.safetensors")
    except (OSError, ValueError, SafetensorError) as error:
        raise ModelError(
            f"{folder} holds no training state to resume ({error}): start the run without --resume"
        ) from error
    found = values.get("format", 1) if isinstance(values, dict) else None
    if found != FORMAT:
        raise ModelError(
            f"{folder} holds the training state of another version (format {found!r}, "
            f"this one reads {FORMAT}): go on with the version that began the run, or begin anew in another "
            "folder"
        )
    return tensors, values


def prefixed(prefix: str, tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """The tensors under longer names."""
    return {f"{prefix}{name}": tensor for name, tensor in tensors.items()}


def without_prefix(prefix: str, tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """The tensors whose names begin with the prefix, under the rest of their names."""
    return {name[len(prefix) :]: tensor for name, tensor in tensors.items() if name.startswith(prefix)}
