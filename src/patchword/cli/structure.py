"""`patchword structure`: search the structure of a prompt fusion under a budget."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

_SHOWN = 10


def structure(
    config: Annotated[
        Path,
        typer.Argument(help="TOML file of the search, or the name of one that came with the package."),
    ],
    overrides: Annotated[
        list[str] | None, typer.Argument(help="Settings to change: key=value, for instance budget=50000.")
    ] = None,
    resume: Annotated[
        bool,
        typer.Option("--resume", help="Go on with the search of the run folder; begin if there is none."),
    ] = False,
    device: Annotated[
        str | None, typer.Option(help="cpu, cuda, mps; the best there is where left out.")
    ] = None,
) -> None:
    """Train one network that holds all structures of a space, rank them by evolution, and write
    structure.toml, which `train` takes.
    """
    from rich.table import Table

    from patchword.log import console
    from patchword.lookup import look_up

    found = look_up("tasks.label.structure:search_structure")(config, overrides or [], resume, device)
    table = Table("score", "cost", "fused layers", "query", "query context", "fusion context", "map width")
    for scored in found.ranked[:_SHOWN]:
        lengths = (
            scored.structure.query,
            scored.structure.query_context,
            scored.structure.fusion_context,
            scored.structure.map_width,
        )
        shown = (" ".join(map(str, part)) if isinstance(part, tuple) else str(part) for part in lengths)
        table.add_row(
            f"{scored.score:.4f}", f"{scored.cost:,.0f}", str(scored.structure.fused_layers), *shown
        )
    console(width=110).print(table)
    console(width=110).print(
        f"{len(found.ranked)} structures; lengths are those of the layers from below; the best is "
        f"{found.toml}; plot {found.plot}"
    )
