"""`patchword template`: captions by a template, the baseline row of a comparison."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from patchword.cli.outputs import Overwrite, complain, refuse_existing
from patchword.errors import ConfigError, counted

DEFAULT_MODEL = "flickr8k"


def template(
    data: Annotated[Path, typer.Option("--data", help="Annotations that name the pictures.")],
    out: Annotated[Path, typer.Option("--out", help="Run folder to write, for `compare`.")],
    images: Annotated[
        Path | None, typer.Option("--images", help="Folder of the pictures; not needed with --instances.")
    ] = None,
    instances: Annotated[
        Path | None, typer.Option(help="COCO instances JSON: its objects are what was seen.")
    ] = None,
    model: Annotated[
        str,
        typer.Option("--model", help="Without --instances: captioning model whose tower names concepts."),
    ] = DEFAULT_MODEL,
    split: Annotated[str, typer.Option(help="Split whose pictures are captioned.")] = "val",
    most: Annotated[int, typer.Option(min=1, max=1000, help="Kinds of things that a sentence names.")] = 3,
    least: Annotated[
        float, typer.Option(min=0.0, max=1.0, help="Probability from which a concept is named.")
    ] = 0.3,
    smooth: Annotated[
        float,
        typer.Option(
            min=0.0,
            max=100.0,
            help="Without --instances: weight of what captions of split train name together; 0: eyes alone.",
        ),
    ] = 0.0,
    overwrite: Overwrite = False,
    device: Annotated[
        str | None, typer.Option(help="cpu, cuda, mps; the best there is where left out.")
    ] = None,
) -> None:
    """Caption a split by a template that fills in what was seen, objects with boxes or concepts, and write a
    run folder, so that `compare` shows it beside trained models. A picture without objects or that cannot be
    read is named on standard error, and the exit status is 1.
    """
    from patchword.log import progress
    from patchword.tasks.caption import template as captions

    refuse_existing(overwrite, {"--out": out / "predictions" / f"{split}.json"}, makes_folder=True)
    captions.refuse_other_run(out)
    records = captions.records_of(data, split)
    if instances is not None:
        rows, troubles = captions.captions_from_instances(records, instances, most)
    elif images is None:
        raise ConfigError("--images is missing: name the folder of the pictures, or give --instances")
    else:
        from patchword.tasks.caption.load import load

        captioner = load(model, device)
        agreement = captions.agreement_of(data, smooth) if smooth else captions.NO_AGREEMENT
        with progress() as bar:
            task = bar.add_task(f"captions of {split}", total=len(records), status="")
            rows, troubles = captions.captions_from_concepts(
                records,
                images,
                captioner,
                most,
                least,
                lambda count: bar.update(task, advance=count),
                agreement,
            )
    for trouble in troubles:
        complain(trouble)
    path = captions.write_run(out, rows, split, str(instances or model))
    print(f"{path}: {counted(len(rows), 'caption')}")
    raise typer.Exit(1 if troubles else 0)
