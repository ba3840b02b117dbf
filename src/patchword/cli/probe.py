"""`patchword probe`: what a painter adds where a prompt leaves something open."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from patchword.cli.outputs import print_json
from patchword.errors import ConfigError


def probe(
    model: Annotated[
        str, typer.Argument(help="A painter: a shipped name, a folder, a hub id, or hub:ID of a pipeline.")
    ],
    number: Annotated[
        int, typer.Option("-n", "--number", min=8, max=10_000, help="Pictures of each prompt.")
    ] = 64,
    prompt: Annotated[
        str | None,
        typer.Option(help="What is painted, for a model of photographs; one of drawn scenes has its own."),
    ] = None,
    label: Annotated[
        list[str] | None, typer.Option("--label", help="What may be in the picture; give it several times.")
    ] = None,
    towers: Annotated[str, typer.Option(help="Two towers that choose among the labels.")] = "two-towers",
    data: Annotated[
        Path | None, typer.Option(help="Captions of the training, for how often they name each label.")
    ] = None,
    steps: Annotated[
        int | None, typer.Option(min=1, max=100_000, help="Steps from noise to picture.")
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object per prompt.")] = False,
    device: Annotated[
        str | None, typer.Option(help="cpu, cuda, mps; the best there is where left out.")
    ] = None,
) -> None:
    """Paint prompts that leave something open, and print what the model fills in beside how often its
    training showed it."""
    from patchword.log import progress
    from patchword.tasks.paint import probe as probing
    from patchword.tasks.paint.model import load_painter
    from patchword.tasks.paint.paint import AT_ONCE

    painter = load_painter(model, device)
    drawn = getattr(getattr(painter, "settings", None), "drawn_world", False)
    if (prompt is None) != (not label):
        raise ConfigError("--prompt and --label go together: what to paint, and what may be in it")
    if prompt is None and not drawn:
        raise ConfigError(
            f"{model} was not trained on drawn scenes: say what to paint and what to look for, for instance "
            '--prompt "a doctor" --label man --label woman'
        )
    prompts = 1 if prompt is not None else len(probing.OPEN_PROMPTS)
    each = (painter.usual_steps if steps is None else steps) or 1
    with progress() as bar:
        task = bar.add_task("painting", total=prompts * -(-number // AT_ONCE) * each, status="")

        def watch() -> None:
            bar.update(task, advance=1)

        if prompt is None:
            from patchword.tasks.paint.oracle import load_oracle

            found = probing.probe_scenes(painter, load_oracle(), 1, number, steps, watch)
        else:
            from patchword.data.formats.readers import read_captions
            from patchword.tasks.retrieve.load import load_two_towers

            records = None if data is None else read_captions(data)
            chooser = load_two_towers(towers, device).label
            pictures = probing.paint_many(painter, prompt, number, steps, watch)
            found = [probing.probe_labels(pictures, prompt, label or [], chooser, records)]
    for one in found:
        if as_json:
            print_json(
                {**one._asdict(), "shares": [s._asdict() for s in one.shares], "distance": one.distance}
            )
            continue
        far = (
            "" if one.distance is None else f", {one.distance:.2f} from the training prior (total variation)"
        )
        print(f'"{one.prompt}", {one.what} of {one.pictures} pictures{far}')
        for share in one.shares:
            prior = (
                ""
                if share.prior is None
                else f"  training {share.prior:6.1%}" + (" *" if share.differs else "")
            )
            low, high = share.interval
            print(f"  {share.value:12} {share.painted:6.1%}  [{low:.1%}, {high:.1%}]{prior}")
