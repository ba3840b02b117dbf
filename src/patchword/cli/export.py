"""`patchword export`: two towers or a captioner as ONNX files, and what that costs."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

import typer

from patchword.cli.outputs import refuse_taken
from patchword.errors import ConfigError, counted

TEXTS = ("a dog runs through the snow", "two children in red jackets", "a plate of food on a table", "water")


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
    from matplotlib import get_data_path

    from patchword.tasks.table import task_of

    refuse_taken({"--out": out})
    if (data is None) != (images is None):
        raise ConfigError("--data and --images belong together: give both, or neither")
    task, measured = task_of(model), None if data is None or images is None else (data, images, split)
    photo = Path(get_data_path()) / "sample_data" / "grace_hopper.jpg"
    if task == "caption":
        _captioner(model, out, to, photo, measured)
    elif task == "retrieve":
        _towers(model, out, to, photo, measured)
    else:
        raise ConfigError(
            f"export is for models of tasks retrieve and caption, and {model} is one for {task!r}"
        )


def _towers(
    model: str, out: Path, to: Literal["onnx", "int8"], photo: Path, measured: tuple[Path, Path, str] | None
) -> None:
    from patchword.tasks.retrieve.export import agreement, export_towers, recall_of

    towers, exported = export_towers(model, out, to)
    known = [text for text in TEXTS if towers.knows(text)] or [towers.vocabulary.tokens([5])[0]]
    pictures, texts = agreement(towers, exported, [photo], known)
    print(
        f"{out}: {_size(out):.1f} MiB; lowest cosine with the model's vectors: {pictures:.6f} for a "
        f"photograph, {texts:.6f} for {counted(len(known), 'text')}"
    )
    if measured is not None:
        before, after = recall_of((towers, exported), *measured)
        for name in before:
            print(f"{name} {before[name]:.2f} -> {after[name]:.2f}")


def _captioner(
    model: str, out: Path, to: Literal["onnx", "int8"], photo: Path, measured: tuple[Path, Path, str] | None
) -> None:
    from patchword.tasks.caption.export import agreement, cider_of, export_captioner, plain

    captioner, exported = export_captioner(model, out, to)
    same, apart = agreement(captioner, exported, [photo])
    said = f"the same caption, log-probability {apart:.1e} apart" if same else "another caption"
    print(f"{out}: {_size(out):.1f} MiB; of a photograph it says {said}")
    if measured is not None:
        whole, search, after = (cider_of(one, *measured) for one in (captioner, plain(captioner), exported))
        print(f"CIDEr {whole:.4f} as the model ships, {search:.4f} by its plain search -> {after:.4f}")


def _size(out: Path) -> float:
    return sum(path.stat().st_size for path in out.iterdir()) / 2**20
