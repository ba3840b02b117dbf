"""What all commands observe about the files they write and the lines they print."""

from __future__ import annotations

import json
import sys
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Annotated, Any

import typer

from patchword.errors import ConfigError

FIGURES = (".png", ".svg", ".pdf")
"""What --explain may end in for a figure in place of a page."""
PAGES = (".html", ".htm")

Overwrite = Annotated[
    bool, typer.Option("--overwrite", help="Replace files that are there already; else they are refused.")
]
"""The option of every command that writes a file under a name it is given."""


def refuse_existing(overwrite: bool, outputs: Mapping[str, Path | None], makes_folder: bool = False) -> None:
    """Before any work: raises ConfigError where a file that an option names is there already, unless it may
    be overwritten, and where there is no folder for it, unless the command makes one.

    `outputs` are paths by option; None is an option that was left out. A device or a pipe may always be
    written to.
    """
    for option, path in outputs.items():
        if path is None:
            continue
        if path.is_dir():
            raise ConfigError(f"{option} {path} is a folder, and a file is written: name a file in it")
        if not makes_folder and not path.parent.is_dir():
            raise ConfigError(f"{option} {path}: there is no folder {path.parent}: make it first")
        if path.is_file() and not overwrite:
            raise ConfigError(f"{option} {path} exists already: name another file; --overwrite replaces it")


def refuse_taken(outputs: Mapping[str, Path | None]) -> None:
    """Before any work: raises ConfigError where a new folder shall be written and something is there already.

    `outputs` are paths by option; None is an option that was left out. An empty folder is as good as none.
    """
    for option, path in outputs.items():
        if path is None or not path.exists():
            continue
        if not path.is_dir():
            raise ConfigError(f"{option} {path} is a file, and a folder is written: choose another name")
        if any(path.iterdir()):
            raise ConfigError(
                f"{option} {path} exists and is not empty: choose another folder, or remove it first"
            )


def refuse_suffix(option: str, path: Path | None, suffixes: Collection[str], pictures: int = 1) -> None:
    """Raises ConfigError where a file's suffix says another kind than what can be written, or a figure shall
    hold several pictures."""
    if path is None:
        return
    if path.suffix.lower() not in suffixes:
        raise ConfigError(
            f"{option} {path}: a file that ends in {path.suffix or 'nothing'} cannot be drawn; let it end in "
            f"{', '.join(suffixes)}"
        )
    if pictures > 1 and path.suffix.lower() not in PAGES:
        raise ConfigError(
            f"{option} {path} is a figure of one picture, and there are {pictures}: let it end in .html"
        )


def complain(message: object) -> None:
    """One line on standard error."""
    print(f"patchword: {' '.join(str(message).split())}", file=sys.stderr)


def print_json(row: Any) -> None:
    """One line of JSON on standard output, at once; what the console's encoding lacks, and bytes of file
    names that are no UTF-8, as JSON escapes."""
    line = json.dumps(row, ensure_ascii=False)
    try:
        line.encode(sys.stdout.encoding or "utf-8")
    except UnicodeEncodeError:
        line = json.dumps(row)
    print(line, flush=True)


AllowUrls = Annotated[
    bool, typer.Option("--allow-urls", help="Fetch pictures that are named by an address (http, https).")
]
"""The option of every command that takes pictures by name."""

Shots = Annotated[
    Path | None,
    typer.Option(
        "--shots",
        help="Few-shot models: examples as JSON lines, {image, text} or {image, question, answer}; an empty "
        "file for none.",
    ),
]
"""The option of commands that few-shot models answer as well."""
