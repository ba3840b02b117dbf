"""`patchword concepts`: what the eyes of a captioning model name, how far it can be trusted, and which
pictures are strange to it.
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from patchword.cli.outputs import refuse_taken
from patchword.errors import counted


def concepts(
    model: Annotated[
        str, typer.Argument(help="A captioning model over an ImageNet tower: its folder or shipped name.")
    ],
    data: Annotated[Path, typer.Option("--data", help="Annotations of the pictures that it was trained on.")],
    images: Annotated[Path, typer.Option("--images", help="Folder of the pictures.")],
    out: Annotated[Path, typer.Option("--out", help="Folder of the model with its concepts.")],
    features: Annotated[
        Path | None,
        typer.Option("--features", help="Feature store of this model's tower, in place of the pictures."),
    ] = None,
    held_out: Annotated[
        int,
        typer.Option(
            "--held-out", min=1, help="Training pictures set aside, as data.held_out of the training."
        ),
    ] = 500,
    confident: Annotated[
        float, typer.Option(min=0.01, max=1.0, help="Probability from which a word must be said.")
    ] = 0.6,
    untaught: Annotated[
        float | None,
        typer.Option(
            min=0.01,
            max=1.0,
            help="Probability from which the likeliest word that no training caption holds must be said; "
            "as --confident where left out.",
        ),
    ] = None,
    mention: Annotated[bool, typer.Option(help="Whether confident words enter captions.")] = True,
    open_words: Annotated[
        bool,
        typer.Option(
            "--open-words",
            help="Trust a word that no training caption names as the others: the captions may not have met "
            "its thing. Without it, what no caption says is hardly ever believed.",
        ),
    ] = False,
    half: Annotated[bool, typer.Option("--half", help="Write weights in half precision.")] = False,
    device: Annotated[
        str | None, typer.Option(help="cpu, cuda, mps; the best there is where left out.")
    ] = None,
) -> None:
    """Calibrate what the classifier under a captioner names, by how often people's captions name it, and
    learn which pictures are unlike the training pictures and which captions are not to be trusted. The model
    with all of this is written to --out; a table says how reliable it is on the pictures set aside.
    """
    refuse_taken({"--out": out})
    from rich.table import Table

    from patchword.log import console, progress
    from patchword.tasks.caption.calibrate import calibrate, frequent_mistakes, named_in, reliability, view
    from patchword.tasks.caption.load import load
    from patchword.train.data import DataSettings, read_splits, stored_inputs

    captioner = load(model, device)
    train, others = read_splits(DataSettings(annotations=str(data), images=str(images), held_out=held_out))
    stored = None
    if features is not None:
        stored = stored_inputs(features, captioner.model.tower, captioner.settings.preprocessing, ())
    with progress() as bar:
        task = bar.add_task("pictures", total=len(train) + len(others), status="")

        def advance(count: int) -> None:
            bar.update(task, advance=count)

        train_views = view(captioner, images, train, advance, stored=stored)
        other_views = view(captioner, images, others, advance, captions=True, stored=stored)
    options = {"confident": confident, "untaught": untaught, "mention": "confident" if mention else "never"}
    captioner = calibrate(captioner, train, train_views, others, other_views, options, open_words)
    captioner.save(out, half)
    settings, named_BW = captioner.settings.concepts, named_in(others)
    assert settings is not None  # they were calibrated a moment ago
    table = Table(
        "probability",
        "pairs",
        "mean probability",
        "named by a reference",
        title=f"{counted(len(others), 'picture')} set aside",
    )
    for row in reliability(other_views, named_BW, settings):
        table.add_row(
            f"{row.low:.2f} to {row.high:.2f}", f"{row.pairs:,}", f"{row.predicted:.3f}", f"{row.named:.3f}"
        )
    console(width=100).print(table)
    wrong = ", ".join(f"{word} {count}" for word, count in frequent_mistakes(other_views, named_BW, settings))
    print(
        f"{out}: {counted(len(settings.hosts), 'word')} said in another's place; sure and not "
        f"named: {wrong or 'none'}"
    )
