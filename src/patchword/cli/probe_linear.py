"""`patchword probe-linear`: what a linear classifier reads from a frozen tower."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated

import typer

from patchword.cli.outputs import Overwrite, refuse_existing
from patchword.errors import counted
from patchword.files import write_json


def probe_linear(
    model: Annotated[
        str, typer.Argument(help="Any model with a picture tower, or a tower's name (efficientnet-lite2).")
    ],
    data: Annotated[Path, typer.Option("--data", help="Table with image, label and split.")],
    images: Annotated[Path, typer.Option("--images", help="Folder of the pictures.")],
    split: Annotated[str, typer.Option(help="Split that the probe is evaluated on.")] = "val",
    share: Annotated[
        float, typer.Option(min=0.0001, max=1.0, help="Share of the training rows that is fitted.")
    ] = 1.0,
    seed: Annotated[int, typer.Option(min=0, max=2**62, help="Which training rows choose the strength.")] = 0,
    out: Annotated[Path | None, typer.Option(help="JSON file for the values.")] = None,
    overwrite: Overwrite = False,
) -> None:
    """Fit a linear classifier by L-BFGS on the mean patch of a frozen tower, its strength of weight decay
    chosen on a fifth of the training rows, and print its accuracy on another split.
    """

    from patchword.log import progress
    from patchword.tasks.retrieve.probe import class_numbers, features_of, probe, rows_of

    refuse_existing(overwrite, {"--out": out})
    train, others = rows_of(data, "train", share), rows_of(data, split)
    labels = sorted({label for _, label in (*train, *others)})
    number = {label: place for place, label in enumerate(labels)}
    with progress(sys.stderr.isatty()) as bar:
        task = bar.add_task("pictures", total=len(train) + len(others), status="")
        files = [file for file, _ in (*train, *others)]
        features = features_of(model, images, files, lambda count: bar.update(task, advance=count))
    classes = class_numbers([number[label] for _, label in (*train, *others)])
    count = len(train)
    found = probe((features[:count], classes[:count]), (features[count:], classes[count:]), len(labels), seed)
    print(
        f"accuracy {found.accuracy:.4f} on {counted(found.evaluated, 'row')} of {split}, "
        f"from {counted(found.rows, 'training row')}, strength {found.strength:g}"
    )
    if out is not None:
        tried = {f"{strength:g}": value for strength, value in found.chosen_on.items()}
        write_json(out, {**found._asdict(), "chosen_on": tried, "model": model, "split": split}, indent=1)
