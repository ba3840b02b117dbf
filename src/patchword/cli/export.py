"""`patchword export`: two towers as ONNX files, and what that costs."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

import typer

from patchword.cli.outputs import refuse_taken
from patchword.errors import ConfigError, counted

TEXTS = ("a dog runs through the snow", "two children in red jackets", "a plate of food on a table", "water")


def export(
    model: Annotated[str, typer.Argument(help="Two towers: shipped name, folder or hub id.")],
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
        Path | None, typer.Option("--data", help="Captions to measure the recall by, before and after.")
    ] = None,
    images: Annotated[Path | None, typer.Option("--images", help="--data: folder of the pictures.")] = None,
    split: Annotated[str, typer.Option("--split", help="--data: split to measure on.")] = "val",
) -> None:
    """Write two towers as ONNX files that onnxruntime runs without torch, compare their vectors with the
    model's, and with --data print the recall that this costs."""
    from matplotlib import get_data_path

    from patchword.tasks.retrieve.export import agreement, export_towers, recall_of

    refuse_taken({"--out": out})
    if (data is None) != (images is None):
        raise ConfigError("--data and --images belong together: give both, or neither")
    towers, exported = export_towers(model, out, to)
    photo = Path(get_data_path()) / "sample_data" / "grace_hopper.jpg"
    known = [text for text in TEXTS if towers.knows(text)] or [towers.vocabulary.tokens([5])[0]]
    pictures, texts = agreement(towers, exported, [photo], known)
    size = sum(path.stat().st_size for path in out.iterdir()) / 2**20
    print(
        f"{out}: {size:.1f} MiB; lowest cosine with the model's vectors: {pictures:.6f} for a photograph, "
        f"{texts:.6f} for {counted(len(known), 'text')}"
    )
    if data is not None and images is not None:
        before, after = recall_of((towers, exported), data, images, split)
        for name in before:
            print(f"{name} {before[name]:.2f} -> {after[name]:.2f}")
