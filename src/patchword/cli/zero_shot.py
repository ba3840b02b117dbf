"""`patchword zero-shot`: how well two towers label pictures that they were never trained to label."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated

import typer

from patchword.cli.outputs import Overwrite, complain, refuse_existing
from patchword.errors import counted
from patchword.files import write_json


def zero_shot(
    model: Annotated[
        str, typer.Argument(help="Two towers: shipped name, folder, hub id, or hub:ID of a CLIP.")
    ],
    classes: Annotated[
        Path,
        typer.Option(
            "--classes",
            help="A label per line, if wanted with a tab and names between commas; or JSON {label: [names]}.",
        ),
    ],
    data: Annotated[
        Path,
        typer.Option("--data", help="Table with image and label, or a folder with a sub-folder per class."),
    ],
    images: Annotated[Path | None, typer.Option("--images", help="Folder of a table's pictures.")] = None,
    split: Annotated[str, typer.Option(help="Split of a table that is labelled.")] = "val",
    templates: Annotated[
        Path | None,
        typer.Option(help="File of prompts, one per line with a place {}; the eighty of the package else."),
    ] = None,
    out: Annotated[Path | None, typer.Option(help="JSON file for the values.")] = None,
    overwrite: Overwrite = False,
    device: Annotated[
        str | None, typer.Option(help="cpu, cuda, mps; the best there is where left out.")
    ] = None,
) -> None:
    """Label pictures by the nearest class, each class the mean of its prompts, and print how often that is
    right, over all pictures and for every class. A picture that cannot be read is named on standard error,
    and the exit status is 1.
    """
    from rich.table import Table

    from patchword.cli.left_out import report_left_out
    from patchword.data.formats.labels import TableColumns
    from patchword.data.sources import PictureListing
    from patchword.files import printable
    from patchword.log import console, progress
    from patchword.tasks.retrieve import zero_shot as labels
    from patchword.tasks.retrieve.load import load_two_towers
    from patchword.text.templates import read_classes, read_templates
    from patchword.text.templates import templates as eighty

    refuse_existing(overwrite, {"--out": out})
    names = read_classes(classes)
    prompts = eighty() if templates is None else read_templates(templates)
    found = labels.labelled_pictures(data, images, split, names, TableColumns())
    towers = load_two_towers(model, device)
    for remark in dict.fromkeys(
        remark for one in names for name in one.names for remark in towers.remarks(name)
    ):
        complain(remark)
    with progress(sys.stderr.isatty()) as bar:
        task = bar.add_task("pictures", total=len(found.files), status="")
        result = labels.zero_shot(
            towers, found, names, prompts, complain, lambda count: bar.update(task, advance=count)
        )
    table = Table(
        "class",
        "pictures",
        "right",
        title=f"{counted(result.pictures, 'picture')}, {counted(len(prompts), 'prompt')}",
    )
    for label, (count, share) in result.of_class.items():
        table.add_row(printable(label), str(count), f"{share:.3f}")
    shown = console(width=100)
    shown.print(table)
    scores = {"top_1": result.top_1, "top_5": result.top_5, "mean_per_class": result.mean_per_class}
    for name, value in scores.items():
        shown.print(f"{name} {value:.4f}")
    if out is not None:
        write_json(out, {**result._asdict(), "templates": len(prompts), "split": split}, indent=1)
    listed = PictureListing([], found.left_out)
    labelled = f"{counted(result.pictures, 'picture')} labelled"
    lost = report_left_out(listed, labelled, result.unreadable, as_json=False)
    raise typer.Exit(1 if result.unreadable or lost else 0)
