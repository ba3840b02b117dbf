"""Model folders: written whole or not at all, read strictly, no pickle.

config.json          format version, task, facts about the model, SHA-256 of the other files, settings of the
parts model.safetensors    every weight and buffer (a frozen public tower may be named by id, revision and
SHA-256 instead) vocab.json           words or tokenizer prototypes.json      what the prototypes of a memory
stand for, where there is one README.md            the model card
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pydantic import BaseModel

from patchword import files, hub
from patchword.checkpoints.facts import ModelFacts, model_card
from patchword.checkpoints.upgrades import upgraded_config, upgraded_name
from patchword.errors import ModelError
from patchword.files import file_digest
from patchword.version import version

if TYPE_CHECKING:  # a query of words reads a folder without torch: tensors come where there are any
    from torch import Tensor, nn

FORMAT = 3
"""Format of config.json; `upgrades.py` brings folders of earlier formats up to it."""

WEIGHTS, VOCABULARY = "model.safetensors", "vocab.json"
EXPORTED = "exported.json"
"""What a folder that `patchword export` wrote holds: of what it was made, and how it is used."""
SHIPPED = Path(__file__).resolve().parent.parent / "pretrained"
CHECKED_AT_LOADING = 64 * 2**20
"""Bytes of a file up to which its SHA-256 is compared whenever it is opened; `patchword models --check`
compares all."""


def write_model(
    folder: Path,
    task: str,
    settings: BaseModel | None,
    facts: ModelFacts,
    weights: Mapping[str, Tensor],
    vocabulary: dict[str, Any] | None,
    half: bool = False,
    more: Mapping[str, Any] | None = None,
) -> None:
    """Write the files of a model folder; `save_model` does so whole or not at all.

    Args:
        settings: the sections of config.json; None for weights that a training alone reads.
        vocabulary: what vocab.json holds; None where there are no words.
        half: store floating-point tensors as fp16.
        more: further JSON files by name.
    """
    from patchword.tensors import write_tensors

    folder.mkdir(parents=True, exist_ok=True)
    kept = {
        name: tensor.half() if half and tensor.is_floating_point() else tensor
        for name, tensor in weights.items()
    }
    write_tensors(folder / WEIGHTS, kept)
    tables = {**({} if vocabulary is None else {VOCABULARY: vocabulary}), **(more or {})}
    for name, content in tables.items():
        files.write_json(folder / name, content, indent=1 if name == VOCABULARY else None)
    files.write_text(folder / "README.md", model_card(facts))
    config = {
        "format": FORMAT,
        "patchword": version(),
        "task": task,
        "facts": facts.model_dump(mode="json", exclude_defaults=True),
        "files": {name: file_digest(folder / name) for name in (WEIGHTS, *tables)},
    }
    sections = {} if settings is None else settings.model_dump(mode="json")
    files.write_json(folder / "config.json", {**config, **sections}, indent=1)


def save_model(model: Any, folder: str | Path, half: bool = False) -> None:
    """Write the folder of any model that has `write(folder, half)`; it appears under its name when it is
    complete.

    Raises WriteError where it exists and is not empty, or cannot be written.
    """
    with files.whole_folder(Path(folder)) as aside:
        model.write(aside, half)


def shipped_models() -> list[str]:
    """Names of the models that come with the package."""
    return sorted(folder.parent.name for folder in SHIPPED.glob("*/config.json"))


def is_exported(name: str | Path) -> bool:
    """Whether a folder is one that `patchword export` wrote."""
    return (Path(name) / EXPORTED).is_file()


def read_exported(folder: Path, needed: Iterable[str], what: str) -> dict[str, Any]:
    """What `patchword export` wrote about a folder. Raises ModelError for a folder that is none, or one of
    another kind of model than the one that `what` says is needed, which has the keys `needed`."""
    path = folder / EXPORTED
    try:
        facts = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise ModelError(f"{path}: {error}: export the model anew") from error
    if not isinstance(facts, dict) or not all(key in facts for key in needed):
        task = facts.get("task") if isinstance(facts, dict) else None
        kind = "no whole export" if task is None else f"an export of a model of task {task}"
        raise ModelError(f"{folder} is {kind}, and {what} needed: export one anew")
    return facts


def find_model(name: str | Path) -> Path:
    """The folder of a model. Raises ModelError listing the shipped names when nothing is found."""
    if not isinstance(name, str | os.PathLike):
        raise ModelError(f"expected the name or the folder of a model, found {name!r}")
    for folder in (Path(name), SHIPPED / str(name)):
        if (folder / "config.json").exists():
            return folder
    if is_exported(name):
        raise ModelError(
            f"{name} is an export, which `caption --model` and `search --model` run; what you ask for needs "
            "the model that it was made of"
        )
    if Path(name).exists() or str(name).partition("@")[0].count("/") != 1 or str(name).startswith((".", "/")):
        raise ModelError(
            f"no model at {name}: give a folder with config.json, a hub id, or one of: "
            f"{', '.join(shipped_models()) or 'none shipped'}"
        )
    return hub.download(name)


def read_config(folder: Path) -> dict[str, Any]:
    """config.json of a model folder, as the newest format has it.

    Raises ModelError when it is missing, not JSON, or of another format.
    """
    config = _read_json(folder / "config.json")
    found = config.get("format")
    if isinstance(found, bool) or not isinstance(found, int) or not 1 <= found <= FORMAT:
        raise ModelError(
            f"{folder / 'config.json'} has format {found!r}, this version of Patchword reads 1 to {FORMAT}: "
            "copy the folder anew, or install a newer version"
        )
    return upgraded_config(config, found)


def read_vocabulary(folder: Path) -> dict[str, Any]:
    """vocab.json of a model folder. Raises ModelError when it is missing or not JSON."""
    return _read_json(folder / VOCABULARY)


def check_files(
    folder: Path, config: Mapping[str, Any], largest: int | None = CHECKED_AT_LOADING
) -> list[str]:
    """Compare files with the SHA-256 that config.json records, those beyond `largest` bytes left out.

    Returns:
        The names of the files that were compared: none for a folder of an early format.

    Raises:
        ModelError: a file is missing, or not the one that was written.
    """
    recorded = config.get("files", {})
    if not isinstance(recorded, dict) or any("/" in name or "\\" in name for name in recorded):
        raise ModelError(f"{folder / 'config.json'}: `files` lists no files: copy the folder anew")
    compared = []
    for name, digest in recorded.items():
        path = folder / name
        if not path.is_file():
            raise ModelError(f"{path} is missing: the folder is incomplete; copy it anew")
        if largest is not None and path.stat().st_size > largest:
            continue
        if file_digest(path) != digest:
            raise ModelError(
                f"{path} is not the file that was written (its SHA-256 differs from the one in config.json): "
                "it is damaged or was edited; copy the folder anew"
            )
        compared.append(name)
    return compared


def record_digests(folder: Path) -> list[str]:
    """Record the SHA-256 of the files of a folder of an early format, whose config.json becomes one of the
    newest format.

    Returns:
        The names of the files.

    Raises:
        ModelError: weights that are not finite, which no training leaves, or that cannot be read.
    """
    from patchword.tensors import read_tensors

    config = read_config(folder)
    for name, tensor in read_tensors(folder / WEIGHTS).items():
        if not bool(tensor.isfinite().all()):
            raise ModelError(
                f"{folder / WEIGHTS}: the weight {name} is not finite: it is damaged; copy the folder anew"
            )
    names = sorted(
        path.name for path in folder.iterdir() if path.suffix in (".json", ".safetensors") and path.is_file()
    )
    recorded = {name: file_digest(folder / name) for name in names if name != "config.json"}
    files.write_json(folder / "config.json", {**config, "files": recorded}, indent=1)
    return [*recorded]


def stored_shapes(folder: Path, prefix: str = "") -> dict[str, tuple[int, ...]]:
    """Shapes of the weights whose names begin with `prefix`, under the rest of their names, from the header
    alone.

    Raises ModelError when there are no weights that can be read.
    """
    from patchword.tensors import read_shapes

    shapes = {upgraded_name(name): shape for name, shape in read_shapes(folder / WEIGHTS).items()}
    return {name[len(prefix) :]: shape for name, shape in shapes.items() if name.startswith(prefix)}


def load_weights(
    module: nn.Module, folder: Path, prefix: str = "", without: Callable[[str], bool] | None = None
) -> None:
    """Weights of a model folder into a module, strict both ways.

    Args:
        prefix: beginning of the names of the part of the model that the module is, such as "tower.".
        without: names of the module's weights that stay as they are.

    Raises ModelError naming the tensors that are missing, too many or of another shape.
    """
    import torch

    from patchword.tensors import compare_shapes, read_tensors

    wanted = {
        name: tensor for name, tensor in module.state_dict().items() if without is None or not without(name)
    }
    shapes = {name: tuple(tensor.shape) for name, tensor in wanted.items()}
    compare_shapes(folder / WEIGHTS, stored_shapes(folder, prefix), shapes)
    tensors = {upgraded_name(name): tensor for name, tensor in read_tensors(folder / WEIGHTS).items()}
    with torch.no_grad():
        for name, tensor in wanted.items():
            tensor.copy_(tensors[prefix + name])


def prefix_of(folder: Path, section: str) -> str:
    """The prefix of the names of a section's weights: "tower." or, where a model holds two towers,
    "towers.vision.".

    Raises ModelError where the folder has no weights of that section.
    """
    names = stored_shapes(folder)
    for prefix in (f"{section}.", f"towers.{section}."):
        if any(name.startswith(prefix) for name in names):
            return prefix
    raise ModelError(
        f"{folder / WEIGHTS} holds no weights of {section!r}: the folder is mixed up; copy it anew"
    )


def weights_digest(module: nn.Module) -> str:
    """SHA-256 over names, shapes and bytes of a module's state: what identifies the tower of a feature
    store."""
    from patchword.tensors import tensors_digest

    return tensors_digest(module.state_dict())


def tower_digest(tower: nn.Module) -> str:
    """`weights_digest` of a vision tower without its adapters: these begin as nothing, and leave the space of
    its patches what it is.
    """
    from patchword.tensors import tensors_digest

    return tensors_digest(
        {name: tensor for name, tensor in tower.state_dict().items() if not name.startswith("adapters.")}
    )


def tower_id(vision: nn.Module) -> str:
    """What a codebook calls the text space of a vision tower's patches, and a training compares.

    It is the name of the sentence encoder where patches have their place by the names of classes, else the
    beginning of the digest of the tower's weights.
    """
    return getattr(vision, "text_space", None) or tower_digest(vision)[:16]


def lower_digest(tower: nn.Module, until_layer: int) -> str:
    """`weights_digest` of what tokens pass before layer `until_layer`: embedding, layers, and adapters where
    they pass some.
    """
    from patchword.tensors import tensors_digest

    parts = [
        *tower.parts.embedding,
        *(module for block in tower.parts.blocks[:until_layer] for module in block),
    ]
    adapters = getattr(tower, "adapters", ())
    parts += adapters[: max(0, until_layer - len(tower.parts.blocks) + len(adapters))]
    return tensors_digest(
        {
            f"{place}.{name}": tensor
            for place, part in enumerate(parts)
            for name, tensor in part.state_dict().items()
        }
    )


def _read_json(path: Path) -> dict[str, Any]:
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise ModelError(
            f"{path.parent} is no whole model folder: it has no {path.name}; copy it anew"
        ) from None
    except (OSError, ValueError, RecursionError) as error:
        raise ModelError(
            f"{path} is not JSON that can be read ({error}): it is damaged; copy the folder anew"
        ) from error
    if not isinstance(content, dict):
        raise ModelError(f"{path} holds no table of values: it is damaged; copy the folder anew")
    return content
