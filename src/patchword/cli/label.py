"""`patchword label`: which of some labels fits a picture."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from patchword.cli.index import DEFAULT_MODEL
from patchword.errors import DataError, PictureError

if TYPE_CHECKING:
    import numpy as np

BATCH = 32


def label(
    photos: Annotated[list[str], typer.Argument(help="Pictures, folders, globs.")],
    labels: Annotated[str, typer.Option("--labels", help='What to choose from, with commas between: "a dog, a cat, a beach".')],
    model: Annotated[str, typer.Option("--model", help="Two towers: shipped name, folder, hub id, or hub:ID of a CLIP.")] = DEFAULT_MODEL,
    as_json: Annotated[bool, typer.Option("--json", help="One JSON object per line: image, labels with their probabilities.")] = False,
    device: Annotated[str | None, typer.Option(help="cpu, cuda, mps; the best there is where left out.")] = None,
) -> None:
    """Print the labels of each picture, best first, with their probabilities among the labels given; a picture that cannot be read is one
    line on standard error, and exit status 1 at the end."""
    names = split_labels(labels)
    from patchword.data.pictures import open_picture
    from patchword.data.sources import find_pictures
    from patchword.tasks.retrieve import load_two_towers

    paths = find_pictures(photos)
    towers = load_two_towers(model, device)
    bad = 0
    for first in range(0, len(paths), BATCH):
        read, pictures = [], []
        for path in paths[first : first + BATCH]:
            try:
                pictures.append(open_picture(path))
                read.append(path)
            except PictureError as error:
                print(f"patchword: {' '.join(str(error).split())}", file=sys.stderr)
                bad += 1
        if pictures:
            _print(read, names, towers.label(pictures, names), as_json)
    raise typer.Exit(1 if bad else 0)


def split_labels(labels: str) -> list[str]:
    """The labels between the commas, each once. Raises DataError for fewer than two: one alone always has probability 1."""
    names = list(dict.fromkeys(name.strip() for name in labels.split(",") if name.strip()))
    if len(names) < 2:
        raise DataError(f'--labels {labels!r} names {len(names)} label; expected two or more with commas between, such as "a dog, a cat"')
    return names


def _print(paths: list[Path], names: list[str], shares_BL: np.ndarray, as_json: bool) -> None:
    for path, shares_L in zip(paths, shares_BL, strict=True):
        ranked = sorted(zip(names, shares_L.tolist(), strict=True), key=lambda pair: -pair[1])
        if as_json:
            row = {"image": str(path), "labels": [{"label": name, "probability": share} for name, share in ranked]}
            print(json.dumps(row, ensure_ascii=False), flush=True)
        else:
            print("\t".join([str(path), *(f"{name} {share:.3f}" for name, share in ranked)]), flush=True)
