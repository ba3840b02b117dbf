"""`patchword shares`: one training at several shares of its labels, to see how many a tower needs."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from patchword.errors import ConfigError


def shares(
    config: Annotated[
        Path, typer.Argument(help="TOML file of a training (label, retrieve, answer), or its name.")
    ],
    overrides: Annotated[
        list[str] | None, typer.Argument(metavar="[KEY=VALUE]...", help="Settings that replace those.")
    ] = None,
    at: Annotated[
        str, typer.Option("--at", help="Shares of the training rows, with commas: 0.01,0.1.")
    ] = "0.01,0.1",
    seeds: Annotated[str, typer.Option("--seeds", help="Seeds of the trainings, with commas: 1,2,3.")] = "1",
    device: Annotated[
        str | None, typer.Option(help="cpu, cuda, mps; the best there is where left out.")
    ] = None,
) -> None:
    """Train the same configuration at several shares of its training rows and with several seeds, and print
    the scores of the best validations: mean and standard deviation over the seeds. Runs lie below `out`, and
    those that are finished are not repeated; shares.json there holds all scores.
    """
    from rich.table import Table

    from patchword.log import console
    from patchword.tasks.shares import few_label_runs

    found = few_label_runs(
        config, overrides or [], _numbers(at, "--at", float), _numbers(seeds, "--seeds", int), device
    )
    table = Table("share", "rows", found.measure, "runs", title=str(found.file))
    for row in found.rows:
        table.add_row(
            f"{row.share:g}", str(row.items), f"{row.mean:.4f} ± {row.deviation:.4f}", str(len(row.scores))
        )
    console(width=100).print(table)


def _numbers(text: str, option: str, kind: type) -> list:
    try:
        return [kind(part) for part in text.split(",") if part.strip()]
    except ValueError:
        raise ConfigError(
            f"{option} {text!r}: expected numbers with commas between, such as 0.01,0.1"
        ) from None
