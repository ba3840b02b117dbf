"""`patchword compare`: several runs side by side."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from patchword.cli.outputs import Overwrite, refuse_existing
from patchword.errors import ConfigError


def compare(
    runs: Annotated[
        list[Path],
        typer.Argument(metavar="RUN...", help="Run folders; differences are counted from the first."),
    ],
    out: Annotated[
        Path, typer.Option("--out", help="Folder for compare.html, table.md, curves and bars (PNG and SVG).")
    ],
    overwrite: Overwrite = False,
    data: Annotated[
        Path | None,
        typer.Option(help="Annotations: captions are scored anew, with all metrics and intervals."),
    ] = None,
    split: Annotated[
        str,
        typer.Option(
            help="Split of --data; RUN/predictions/SPLIT.json goes before the best validation's captions."
        ),
    ] = "val",
    images: Annotated[
        Path | None, typer.Option(help="Folder of the pictures: sample pictures are embedded in the page.")
    ] = None,
) -> None:
    """Compare runs: scores of each one's best validation, sizes, minutes, captions per second, seeds taken
    together, bars, curves, and their captions of the same pictures.
    """
    from patchword.metrics.files import read_references
    from patchword.reports.compare import WRITTEN, write_comparison

    if images is not None and not images.is_dir():
        raise ConfigError(f"there is no folder {images}: --images names the folder of the pictures")
    if out.exists() and not out.is_dir():
        raise ConfigError(f"--out {out} is a file, and a folder is written: choose another name")
    refuse_existing(overwrite, {f"--out {name}:": out / name for name in WRITTEN if (out / name).exists()})
    references = None if data is None else read_references(data, split)
    print(write_comparison(runs, out, references, split, images))
