"""`patchword models`: what is there to be used."""

from __future__ import annotations

import json
from typing import Annotated

import typer


def models(as_json: Annotated[bool, typer.Option("--json", help="Print the facts as JSON.")] = False) -> None:
    """List the models that come with the package, with what they were trained on and how good they are."""
    from rich.console import Console
    from rich.table import Table

    from patchword.checkpoints.model import SHIPPED, shipped_models

    facts = []
    for name in shipped_models():
        folder = SHIPPED / name
        config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
        size = sum(file.stat().st_size for file in folder.iterdir()) / 2**20
        facts.append(
            {key: config.get(key) for key in ("task", "description", "dataset", "licence", "scores")}
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
    Console().print(table)
