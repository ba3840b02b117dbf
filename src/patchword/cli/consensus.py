"""`patchword consensus`: captions of a search are ranked by what people say of pictures like theirs."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from patchword.cli.outputs import refuse_taken
from patchword.errors import counted


def consensus(
    model: Annotated[str, typer.Argument(help="A captioning model: its folder or shipped name.")],
    data: Annotated[Path, typer.Option("--data", help="Annotations of the pictures that it was trained on.")],
    images: Annotated[Path, typer.Option("--images", help="Folder of the pictures.")],
    out: Annotated[Path, typer.Option("--out", help="Folder of the model with its consensus.")],
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
    candidates: Annotated[
        int, typer.Option(min=2, max=100, help="Captions of the search that are compared.")
    ] = 5,
    half: Annotated[bool, typer.Option("--half", help="Write weights in half precision.")] = False,
    device: Annotated[
        str | None, typer.Option(help="cpu, cuda, mps; the best there is where left out.")
    ] = None,
) -> None:
    """Learn from the training pictures which words and phrases people say of pictures like a given one, so
    that the captions that the search finds are ranked by that as well. How much it counts is chosen by CIDEr
    on the pictures set aside. Run it before `patchword concepts`, which judges the captions.
    """
    refuse_taken({"--out": out})
    from rich.table import Table

    from patchword.data.captions import PictureInputs
    from patchword.errors import ConfigError
    from patchword.log import console, progress
    from patchword.tasks.caption.consensus import fit_consensus
    from patchword.tasks.caption.load import load
    from patchword.tasks.caption.model import CaptioningModel
    from patchword.train.data import DataSettings, pixel_inputs, read_splits, stored_inputs

    captioner = load(model, device)
    if not isinstance(captioner, CaptioningModel):
        raise ConfigError(f"{model} is a captioner of transformers: consensus needs a model of Patchword")
    settings = DataSettings(annotations=str(data), images=str(images), held_out=held_out)
    train, others = read_splits(settings)
    preprocessing = captioner.settings.preprocessing
    inputs: PictureInputs
    if features is None:
        inputs = pixel_inputs(settings, preprocessing, [record.file for record in (*train, *others)])
    else:
        inputs = stored_inputs(features, captioner.model.tower, preprocessing, ())
    with progress() as bar:
        task = bar.add_task("pictures", total=len(train) + len(others), status="")
        captioner, trials = fit_consensus(
            captioner, train, others, inputs, candidates, lambda count: bar.update(task, advance=count)
        )
    captioner.save(out, half)
    chosen = captioner.settings.consensus
    assert chosen is not None  # it was fitted a moment ago
    table = Table(
        "weight",
        "CIDEr x 100",
        title=f"{counted(len(others), 'picture')} set aside, {counted(candidates, 'candidate')}",
    )
    for weight, cider in trials:
        table.add_row(f"{weight:g}{' *' if weight == chosen.weight else ''}", f"{100 * cider:.1f}")
    console(width=100).print(table)
    print(f"{out}: {chosen.ngrams:,} n-grams are predicted, * is the weight that was chosen")
