"""`patchword features`: store what a frozen tower sees."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer


def features(
    model: Annotated[str, typer.Argument(help="Model whose tower is used: a shipped name, a folder, a hub id, or hub:ID of a CLIP.")],
    data: Annotated[Path, typer.Option("--data", help="Annotations that name the pictures.")],
    images: Annotated[Path, typer.Option("--images", help="Folder of the pictures.")],
    out: Annotated[Path, typer.Option("--out", help="Folder of the store.")],
    size: Annotated[
        int | None, typer.Option(help="Side of the pictures in pixels; the tower's own where left out (convolutional towers).")
    ] = None,
    until_layer: Annotated[int | None, typer.Option(help="Store the tokens that go into this layer, not the tower's output.")] = None,
    views: Annotated[int, typer.Option(min=1, help="Views of each picture: the plain one, then random ones for training.")] = 1,
    device: Annotated[str | None, typer.Option(help="cpu, cuda, mps; the best there is where left out.")] = None,
) -> None:
    """Run a tower once over all pictures of a data set and store its features in half precision, for data.features of a training."""
    from patchword.data.readers import read_captions
    from patchword.device import choose_device
    from patchword.log import progress
    from patchword.tasks.features import store_features
    from patchword.tasks.towers import load_tower

    tower, preprocessing = load_tower(model)
    if size is not None:
        preprocessing = preprocessing.model_copy(update={"size": size})
    files = [record.file for record in read_captions(data)]
    with progress() as bar:
        task = bar.add_task("features", total=len(files) * views, status="")
        store = store_features(
            tower,
            preprocessing,
            images,
            files,
            out,
            choose_device(device),
            lambda count: bar.update(task, advance=count),
            until_layer,
            views=views,
        )
    shapes = ", ".join(f"{name} {array.shape} {array.dtype}" for name, array in store.fields.items())
    print(f"{out}: {len(files)} pictures; {shapes}")
