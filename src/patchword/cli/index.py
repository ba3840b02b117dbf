"""`patchword index`: make the pictures of a folder searchable, and keep the index up to the folder."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from patchword.search.index import IndexReport

DEFAULT_MODEL = "two-towers"


def index(
    folder: Annotated[Path, typer.Argument(help="Folder of pictures; its sub-folders are searched too.")],
    out: Annotated[
        Path, typer.Option("--out", help="Folder of the index; made, continued or brought up to date.")
    ],
    model: Annotated[
        str, typer.Option("--model", help="Two towers: shipped name, folder, hub id, or hub:ID of a CLIP.")
    ] = DEFAULT_MODEL,
    concepts: Annotated[
        Path | None,
        typer.Option(
            "--concepts",
            help="Codebook made with --model: its words are stored by picture, for search --concept.",
        ),
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print the result as one JSON object.")] = False,
) -> None:
    """Embed new and changed pictures, forget deleted ones; go on where an interrupted run was. Pictures that cannot be read are listed,
    with exit status 1 at the end."""
    from rich.console import Console
    from rich.progress import Progress

    from patchword.search.index import update_index
    from patchword.tasks.retrieve.load import load_two_towers

    # A search may start from another place.
    name = str(Path(model).resolve()) if Path(model).is_dir() else model
    towers, words = load_two_towers(model), None
    if concepts is not None:
        from patchword.layers.codebook import Codebook
        from patchword.tasks.retrieve.codebook import picture_concepts

        words = picture_concepts(towers, Codebook.read(concepts))
    console = Console(stderr=True)
    with Progress(console=console, transient=True, disable=not console.is_terminal) as bar:
        task = bar.add_task("pictures", total=None)
        report = update_index(
            folder,
            out,
            towers.embed_images,
            towers.identity,
            name=name,
            concepts=words,
            progress=lambda done, total: bar.update(task, completed=done, total=total),
        )
    show(report, out, as_json)
    if report.bad:
        raise typer.Exit(1)


def show(report: IndexReport, out: Path, as_json: bool) -> None:
    """Print what a run did; what was skipped goes to standard error, one line each."""
    from patchword.search.page import printable

    if as_json:
        counts = {
            "added": report.added,
            "changed": report.changed,
            "removed": report.removed,
            "kept": report.kept,
        }
        bad = [{"path": path, "reason": reason} for path, reason in report.bad]
        print(json.dumps({**counts, "pictures": report.pictures, "bad": bad}))
        return
    for path, reason in report.bad:
        print(f"patchword: skipped {printable(path)}: {' '.join(printable(reason).split())}", file=sys.stderr)
    print(
        f"{report.pictures} pictures in {out}: {report.added} added, {report.changed} changed, {report.removed} removed, "
        f"{report.kept} as before, {len(report.bad)} skipped"
    )
