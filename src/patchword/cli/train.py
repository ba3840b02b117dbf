"""`patchword train`: run a configuration."""

from __future__ import annotations

import shlex
import sys
from pathlib import Path
from typing import Annotated

import typer

from patchword.config import shipped_configs
from patchword.errors import ConfigError
from patchword.lookup import import_torch


def train(
    config: Annotated[
        Path | None,
        typer.Argument(help="TOML file of the run, or the name of one that came with the package."),
    ] = None,
    overrides: Annotated[
        list[str] | None, typer.Argument(help="Settings to change: key=value, for instance stage.0.epochs=3.")
    ] = None,
    resume: Annotated[
        bool,
        typer.Option(
            "--resume", help="Go on from the last checkpoint of the run folder; begin if there is none."
        ),
    ] = False,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Measure memory and time, overfit one batch, and stop.")
    ] = False,
    device: Annotated[
        str | None, typer.Option(help="cpu, cuda, mps; the best there is where left out.")
    ] = None,
    list_configs: Annotated[
        bool, typer.Option("--list", help="List the configurations that came with the package.")
    ] = False,
    help_config: Annotated[
        bool, typer.Option("--help-config", help="List every setting with its default and meaning.")
    ] = False,
) -> None:
    """Train a model from a configuration; `--resume` goes on after an interruption, bit for bit on a CPU."""
    if list_configs:
        for name, says in shipped_configs().items():
            print(f"{name}  {says}")
        return
    if help_config:
        _list_settings()
        return
    if config is None:
        raise ConfigError(
            "train needs a configuration: `patchword train show-attend-tell-flickr8k data.images=FOLDER`; "
            "--list names those that came with the package"
        )
    import_torch()
    from patchword.tasks.start import start

    command = "patchword train " + shlex.join([str(config), *(overrides or [])])
    start(config, overrides or [], resume, dry_run, device, command)


def _list_settings() -> None:
    from rich.table import Table

    from patchword.config import fields
    from patchword.log import console
    from patchword.lookup import look_up
    from patchword.tasks.table import TASKS

    shown = console(width=None if sys.stdout.isatty() else 200)
    schemas = {task: look_up(one.run) for task, one in TASKS.items()}
    schemas["structure"] = look_up("tasks.label.structure:StructureRun")
    for task, schema in schemas.items():
        table = Table("setting", "type", "default", "meaning", title=f'task = "{task}"')
        for field in fields(schema):
            table.add_row(field.name, field.type, field.default, field.meaning)
        shown.print(table)
