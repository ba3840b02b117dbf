"""Model folders: written whole or not at all, read strictly, no pickle.

config.json          format version, task, settings of the parts, preprocessing, decoding, licence, data set, command
model.safetensors    every weight and buffer (a frozen public tower may be named by id, revision and SHA-256 instead)
vocab.json           words or tokenizer
README.md            the model card
"""

from __future__ import annotations

import hashlib
import json
import shutil
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from patchword.checkpoints.upgrades import upgraded_config, upgraded_name
from patchword.errors import ModelError
from patchword.version import version

FORMAT = 2
"""Of config.json; `upgrades.py` brings folders of earlier formats up to it."""


def write_model(
    folder: Path,
    config: dict[str, Any],
    weights: dict[str, Tensor],
    vocabulary: dict[str, Any] | None,
    card: str,
    half: bool = False,
) -> None:
    """Write a model folder. It must not exist yet, or be empty: callers write to a temporary name and rename (`checkpoints/state.py`).

    `half` stores floating-point tensors as fp16. Tensors that share memory are stored once under each name.
    """
    folder.mkdir(parents=True, exist_ok=True)
    tensors = {}
    for name, tensor in weights.items():
        tensor = tensor.detach().cpu()
        tensors[name] = (
            (tensor.half() if half and tensor.is_floating_point() else tensor).contiguous().clone()
        )
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    if vocabulary is not None:
        _write_json(folder / "vocab.json", vocabulary)
    (folder / "README.md").write_text(card, encoding="utf-8")
    _write_json(folder / "config.json", {"format": FORMAT, "patchword": version(), **config})


def write_model_atomically(folder: Path, write: Any) -> None:
    """`write(temporary folder)`, then renamed to `folder`. Raises ModelError where `folder` exists and is not empty."""
    if folder.exists() and any(folder.iterdir()):
        raise ModelError(f"{folder} exists and is not empty: choose another folder or remove it first")
    partial = folder.with_name(folder.name + ".partial")
    shutil.rmtree(partial, ignore_errors=True)
    write(partial)
    if folder.exists():
        folder.rmdir()
    partial.rename(folder)


def read_config(folder: Path) -> dict[str, Any]:
    """config.json of a model folder. Raises ModelError when it is missing, not JSON, or of another format."""
    path = folder / "config.json"
    try:
        config = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise ModelError(f"{folder} is no model folder: it has no config.json") from None
    except ValueError as error:
        raise ModelError(f"{path} is not JSON ({error}): the folder is damaged") from error
    found = config.get("format") if isinstance(config, dict) else None
    if not isinstance(found, int) or not 1 <= found <= FORMAT:
        raise ModelError(f"{path} has format {found!r}, this version of Patchword reads 1 to {FORMAT}")
    return upgraded_config(config, found)


def read_vocabulary(folder: Path) -> dict[str, Any]:
    """vocab.json of a model folder. Raises ModelError when it is missing or not JSON."""
    try:
        return json.loads((folder / "vocab.json").read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise ModelError(
            f"{folder / 'vocab.json'} cannot be read ({error}): the folder is incomplete"
        ) from error


def load_weights(module: nn.Module, folder: Path, prefix: str = "") -> None:
    """Weights of a model folder into a module, strict both ways; with a prefix, the part of the model under it (such as "tower.").

    Raises ModelError naming the tensors that are missing, too many or of another shape.
    """
    path = folder / "model.safetensors"
    try:
        tensors = {upgraded_name(name): tensor for name, tensor in load_file(path).items()}
        stored = {name[len(prefix) :]: tensor for name, tensor in tensors.items() if name.startswith(prefix)}
    except (OSError, SafetensorError) as error:
        raise ModelError(f"{path} cannot be read ({error}): the folder is incomplete or damaged") from error
    wanted = module.state_dict()
    missing, extra = sorted(set(wanted) - set(stored)), sorted(set(stored) - set(wanted))
    if missing or extra:
        raise ModelError(
            f"{path} does not fit this model: {len(missing)} tensors missing {missing[:3]}, {len(extra)} too many {extra[:3]}"
        )
    with torch.no_grad():
        for name, tensor in wanted.items():
            if stored[name].shape != tensor.shape:
                raise ModelError(
                    f"{path}: {name} has shape {tuple(stored[name].shape)}, this model needs {tuple(tensor.shape)}"
                )
            tensor.copy_(stored[name])


def prefix_of(folder: Path, section: str) -> str:
    """With what the names of the weights of a section begin: "tower." or, where a model holds two towers, "towers.vision.".

    Raises ModelError where the folder has no weights of that section.
    """
    path = folder / "model.safetensors"
    try:
        with safe_open(path, framework="pt") as stored:
            names = list(stored.keys())
    except (OSError, SafetensorError) as error:
        raise ModelError(f"{path} cannot be read ({error}): the folder is incomplete or damaged") from error
    for prefix in (f"{section}.", f"towers.{section}."):
        if any(name.startswith(prefix) for name in names):
            return prefix
    raise ModelError(f"{path} holds no weights of {section!r}: the folder is mixed up")


def weights_digest(module: nn.Module) -> str:
    """SHA-256 over names, shapes and bytes of a module's state: what identifies the tower of a feature store."""
    return _digest(module.state_dict())


def tower_digest(tower: nn.Module) -> str:
    """`weights_digest` of a vision tower without its adapters: these begin as nothing, and leave the space of its patches what it is."""
    return _digest(
        {name: tensor for name, tensor in tower.state_dict().items() if not name.startswith("adapters.")}
    )


def tower_id(vision: nn.Module) -> str:
    """What a codebook calls the text space of a vision tower's patches, and a training compares.

    It is the name of the sentence encoder where patches have their place by the names of classes, else the beginning of the
    digest of the tower's weights.
    """
    return getattr(vision, "text_space", None) or tower_digest(vision)[:16]


def lower_digest(tower: nn.Module, until_layer: int) -> str:
    """`weights_digest` of what tokens pass before layer `until_layer`: embedding, layers, and adapters where they pass some."""
    parts = [
        *tower.parts.embedding,
        *(module for block in tower.parts.blocks[:until_layer] for module in block),
    ]
    adapters = getattr(tower, "adapters", ())
    parts += adapters[: max(0, until_layer - len(tower.parts.blocks) + len(adapters))]
    return _digest(
        {
            f"{place}.{name}": tensor
            for place, part in enumerate(parts)
            for name, tensor in part.state_dict().items()
        }
    )


def _digest(tensors: dict[str, Tensor]) -> str:
    digest = hashlib.sha256()
    for name, tensor in sorted(tensors.items()):
        digest.update(f"{name}{tuple(tensor.shape)}{tensor.dtype}".encode())
        digest.update(tensor.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()


def _write_json(path: Path, content: dict[str, Any]) -> None:
    path.write_text(json.dumps(content, indent=1, ensure_ascii=False), encoding="utf-8")
