"""`patchword export`: two towers or a captioner as ONNX files, and what that costs."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

import typer

from patchword.cli.outputs import refuse_taken
from patchword.errors import ConfigError
from patchword.lookup import import_torch, look_up


def export(
    model: Annotated[str, typer.Argument(help="Two towers or a captioner: shipped name, folder or hub id.")],
    out: Annotated[Path, typer.Option("--out", help="New folder for the ONNX files.")],
    to: Annotated[
        Literal["onnx", "int8"],
        typer.Option(
            "--to",
            help="onnx: single precision; int8: ONNX whose products and word tables have weights of eight "
            "bits; convolutions stay as they are.",
        ),
    ] = "onnx",
    data: Annotated[
        Path | None,
        typer.Option("--data", help="Captions to measure what the export costs, before and after."),
    ] = None,
    images: Annotated[Path | None, typer.Option("--images", help="--data: folder of the pictures.")] = None,
    split: Annotated[str, typer.Option("--split", help="--data: split to measure on.")] = "val",
) -> None:
    """Write two towers or a captioner as ONNX files that onnxruntime runs without torch, compare what they
    give with the model, and with --data print the recall or CIDEr that this costs. A captioner keeps its
    plain search and its doubt: ranking by consensus and words that its eyes are sure of stay behind."""
    refuse_taken({"--out": out})
    if (data is None) != (images is None):
        raise ConfigError("--data and --images belong together: give both, or neither")
    import_torch()
    from patchword.tasks.requests import MeasuredOn
    from patchword.tasks.table import TASKS, task_of

    export_it = TASKS[task_of(model)].export
    if export_it is None:
        offered = " and ".join(task for task, one in TASKS.items() if one.export)
        raise ConfigError(
            f"export is for models of tasks {offered}, and {model} is one for {task_of(model)!r}"
        )
    measured = None if data is None or images is None else MeasuredOn(data, images, split)
    for line in look_up(export_it)(model, out, to, measured):
        print(line)
