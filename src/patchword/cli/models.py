"""`patchword models`: what is there to be used."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

import typer

from patchword.errors import ConfigError


def models(
    as_json: Annotated[bool, typer.Option("--json", help="Print the facts as JSON.")] = False,
    check: Annotated[
        str | None,
        typer.Option(
            help="Compare every file of a model, a feature store or a codebook with what was written, and "
            "open it."
        ),
    ] = None,
    record: Annotated[
        bool,
        typer.Option(
            "--record",
            help="With --check, of a model folder that an early version wrote: record what its files are, so "
            "that damage is noticed from now on.",
        ),
    ] = False,
) -> None:
    """List the models that come with the package, with what they were trained on and how good they are."""
    if check is not None:
        print(_checked(check, record))
        return
    if record:
        raise ConfigError("--record goes with --check FOLDER: name the model folder")
    from rich.table import Table

    from patchword.checkpoints.folder import SHIPPED, read_config, shipped_models
    from patchword.log import console

    facts = []
    for name in shipped_models():
        folder = SHIPPED / name
        config = read_config(folder)
        size = sum(file.stat().st_size for file in folder.iterdir()) / 2**20
        facts.append(
            {"task": config.get("task")}
            | {key: config["facts"].get(key) for key in ("description", "dataset", "licence", "scores")}
            | {"name": name, "MiB": round(size, 1)}
        )
    if as_json:
        print(json.dumps(facts, indent=1, ensure_ascii=False))
        return
    table = Table("name", "task", "MiB", "description", "data", "scores")
    for fact in facts:
        scores = ", ".join(f"{name} {value}" for name, value in (fact["scores"] or {}).items())
        table.add_row(
            fact["name"], fact["task"], str(fact["MiB"]), fact["description"], fact["dataset"], scores
        )
    console().print(table)


def _checked(name: str, record: bool) -> str:
    """What was compared, or recorded. Raises ModelError or StoreError for what is damaged."""
    from patchword.checkpoints.folder import check_files, find_model, read_config, record_digests
    from patchword.data.store import MANIFEST, Store
    from patchword.interface import load
    from patchword.layers.codebook import DESCRIPTION, Codebook

    folder = Path(name)
    if (folder / MANIFEST).is_file():
        compared = Store.open(folder).check_files()
    elif (folder / DESCRIPTION).is_file():
        Codebook.read(folder)
        return f"{folder}: a whole codebook"
    else:
        folder = find_model(name)
        compared = check_files(folder, read_config(folder), largest=None)
        load(folder, "cpu")
        if record and not compared:
            return f"{folder}: opens; SHA-256 recorded of {', '.join(record_digests(folder))}"
    if not compared:
        return (
            f"{folder}: opens; it was written by an early version that recorded no SHA-256, so its "
            "numbers were not compared; --record records them from now on"
        )
    return f"{folder}: whole; SHA-256 compared of {', '.join(compared)}"
