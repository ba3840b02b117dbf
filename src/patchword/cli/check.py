"""`patchword check`: look for trouble in a data set before a training does."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer


def check(
    data: Annotated[
        Path,
        typer.Argument(
            help="Annotations: Karpathy or COCO JSON, Flickr token file, CSV, JSONL, or a folder; "
            "or questions."
        ),
    ],
    images: Annotated[
        Path | None,
        typer.Option(
            "--images",
            help="Folder of the pictures (default: DATA itself, 'images' beside it, or its folder).",
        ),
    ] = None,
    answers: Annotated[
        Path | None,
        typer.Option("--answers", help="Annotations of VQA v2, where they do not lie beside the questions."),
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print the findings as one JSON object.")] = False,
) -> None:
    """List everything in a data set that would stop or spoil a training; exit 1 if anything would stop it.
    Nothing is changed."""
    from rich.progress import track

    from patchword.data.formats.check import examine
    from patchword.log import console

    progress = console(stderr=True)

    def watch(records):
        return track(records, "pictures", console=progress, transient=True, disable=not progress.is_terminal)

    report = examine(data, images, watch, answers)
    print(report.to_json() if as_json else report.to_text())
    raise typer.Exit(1 if report.stops else 0)
