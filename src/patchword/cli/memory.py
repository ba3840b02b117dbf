"""`patchword memory`: what the prototypes of a model stand for."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated, Any

import typer

from patchword.errors import ModelError, counted
from patchword.tasks.caption.prototypes import FILE, read_prototypes


def memory(
    model: Annotated[
        str, typer.Argument(help="A shipped name, a folder or a hub id of a model; or its prototypes.json.")
    ],
    layer: Annotated[int | None, typer.Option(min=0, help="Only this decoder layer.")] = None,
    top: Annotated[
        int, typer.Option(min=1, help="Prototypes to show for each layer, the most attended first.")
    ] = 20,
    as_json: Annotated[bool, typer.Option("--json", help="Print everything as JSON.")] = False,
) -> None:
    """List the prototypes of a memory: the training contexts nearest to each, its use, and how many are
    dead."""
    described = read_prototypes(_place(model))
    layers = described["layers"]
    if layer is not None and layer >= len(layers):
        raise ModelError(
            f"{model} has {len(layers)} decoder layers with prototypes, counted from 0; "
            f"there is no layer {layer}"
        )
    if as_json:
        print(json.dumps(described, indent=1, ensure_ascii=False))
        return
    from patchword.log import console

    shown = console()
    shown.print(f"prototypes placed by {described['placement']}")
    for number, prototypes in enumerate(layers):
        if layer in (None, number):
            shown.print(_table(number, prototypes, top))


def _place(model: str) -> Path:
    """The file or folder that a name stands for. Raises ModelError where there is no such model."""
    path = Path(model)
    if path.is_file() or (path / FILE).is_file():
        return path
    from patchword.checkpoints.model import find_model

    return find_model(model)


def _table(number: int, prototypes: list[dict[str, Any]], top: int):
    from rich.table import Table

    alive = [(index, prototype) for index, prototype in enumerate(prototypes) if prototype["alive"]]
    unused = sum(prototype["attention"] == 0 for _, prototype in alive)
    dead = len(prototypes) - len(alive)
    table = Table("no.", "attention", "share of bank", "nearest training contexts", title_justify="left")
    table.title = (
        f"layer {number}: {counted(len(alive), 'prototype')}, {dead} dead, {unused} never attended to"
    )
    for index, prototype in sorted(alive, key=lambda pair: -pair[1]["attention"])[:top]:
        shares = (f"{prototype['attention']:.2%}", f"{prototype['bank_share']:.2%}")
        table.add_row(str(index), *shares, "\n".join(prototype["contexts"]))
    return table
