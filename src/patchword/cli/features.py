"""`patchword features`: store what a frozen tower sees."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, NamedTuple

import typer

from patchword.cli.many import Parts, Workers, check_together
from patchword.cli.outputs import complain
from patchword.errors import PictureError, counted
from patchword.heap import keep
from patchword.lookup import import_torch
from patchword.tasks.requests import MissingChoice

if TYPE_CHECKING:
    from patchword.jobs.files import Elsewhere


def features(
    model: Annotated[
        str,
        typer.Argument(
            help="Model whose tower is used: a shipped name, a folder, a hub id, hub:ID of a CLIP; or a "
            "bare tower: by its own name "
            "(efficientnet-lite2), or by the TOML or the name of a training."
        ),
    ],
    data: Annotated[Path, typer.Option("--data", help="Annotations that name the pictures.")],
    images: Annotated[Path, typer.Option("--images", help="Folder of the pictures.")],
    out: Annotated[Path, typer.Option("--out", help="Folder of the store.")],
    size: Annotated[
        int | None,
        typer.Option(
            min=1,
            max=8192,
            help="Side of the pictures in pixels; the tower's own where left out (convolutional towers).",
        ),
    ] = None,
    until_layer: Annotated[
        int | None,
        typer.Option(
            min=0, max=1000, help="Store the tokens that go into this layer, not the tower's output."
        ),
    ] = None,
    with_features: Annotated[
        bool,
        typer.Option(
            "--with-features", help="--until-layer: store the tower's output as well, in the same pass."
        ),
    ] = False,
    batch: Annotated[
        int | None,
        typer.Option(min=1, help="Pictures in a pass; 8 on a processor, 64 elsewhere, where left out."),
    ] = None,
    tokens: Annotated[
        int | None,
        typer.Option(
            min=0,
            max=1000,
            help="Two towers and a table with texts: store the tokens of both before their last N layers "
            "(prompt fusion).",
        ),
    ] = None,
    missing: Annotated[
        MissingChoice,
        typer.Option(help="--tokens: rows without text or picture: error, image-only or text-only."),
    ] = "error",
    max_words: Annotated[
        int,
        typer.Option(
            min=1,
            max=10**9,
            help="--tokens: words of a text beyond this are cut off, as data.max_words says.",
        ),
    ] = 40,
    views: Annotated[
        int,
        typer.Option(
            min=1, max=1000, help="Views of each picture: the plain one, then random ones for training."
        ),
    ] = 1,
    mirror: Annotated[
        bool,
        typer.Option("--mirror", help="Store every picture plain and mirrored, in place of random views."),
    ] = False,
    device: Annotated[
        str | None, typer.Option(help="cpu, cuda, mps; the best there is where left out.")
    ] = None,
    cluster: Workers = None,
    parts: Parts = None,
) -> None:
    """Run a tower once over all pictures of a data set and store its features in half precision, for
    data.features of a training. Pictures that cannot be read are listed and left out, with exit status 1 at
    the end.
    """
    import_torch()
    keep()
    from patchword.checkpoints.towers import load_tower
    from patchword.data.formats.questions import holds_questions, read_questions
    from patchword.data.formats.readers import read_captions
    from patchword.device import choose_device
    from patchword.log import progress
    from patchword.lookup import look_up

    check_together(cluster, parts)
    if tokens is not None:
        where = None
        if cluster is not None and parts is not None:
            where = look_up("jobs.files").Elsewhere(cluster, parts)
        _tokens_of_both(model, data, images, out, tokens, _Rows(missing, max_words), device, where)
        return
    tower, preprocessing = load_tower(model)
    if size is not None:
        preprocessing = preprocessing.model_copy(update={"size": size})
    records = read_questions(data) if holds_questions(data) else read_captions(data)
    files = list(dict.fromkeys(record.file for record in records))
    jobs = look_up("jobs.features")
    options = jobs.StoreOptions(until_layer, with_features, views, mirror, batch)
    lost: list[str] = []

    def unreadable(file: str, error: PictureError) -> None:
        lost.append(file)
        complain(error)

    pictures = jobs.Pictures(images, files, preprocessing)
    if cluster is not None and parts is not None:
        spread = look_up("jobs.stored")
        store = spread.store_on_cluster(
            model, pictures, out, device, spread.Elsewhere(cluster, parts), options, unreadable
        )
    else:
        with progress() as bar:
            task = bar.add_task("features", total=len(files) * options.view_count, status="")
            store = jobs.store_features(
                tower,
                pictures,
                out,
                choose_device(device),
                lambda count: bar.update(task, advance=count),
                options,
                unreadable,
            )
    shapes = ", ".join(f"{name} {array.shape} {array.dtype}" for name, array in store.fields.items())
    bad = f", {len(lost)} could not be read and are left out" if lost else ""
    print(f"{out}: {counted(len(files) - len(lost), 'picture')}{bad}; {shapes}")
    raise typer.Exit(1 if lost else 0)


class _Rows(NamedTuple):
    """Which rows of a table, and how much of their texts."""

    missing: MissingChoice
    max_words: int


def _tokens_of_both(
    model: str,
    data: Path,
    images: Path,
    out: Path,
    before_last: int,
    choice: _Rows,
    device: str | None,
    where: Elsewhere | None,
) -> None:
    import numpy as np

    from patchword.data.formats.labels import LabelTable, TableColumns
    from patchword.data.labels import LabelData
    from patchword.device import choose_device
    from patchword.log import progress
    from patchword.lookup import look_up
    from patchword.tasks.label.tokens import DecodedInputs

    towers = look_up("tasks.label.towers:towers_of")(model)
    table = LabelTable(data, TableColumns())
    places = np.array([record.place for record in table.rows() if record.split != "test"], dtype=np.int64)
    longest = min(choice.max_words, towers.text.max_length - 2)
    inputs = DecodedInputs(images, towers.preprocessing)
    rows = LabelData(
        table, places, None, towers.vocabulary, longest, images, choice.missing, (True, True), inputs
    )
    if where is not None:
        spread = look_up("tasks.label.tokens_on_cluster:store_tokens_on_cluster")
        store = spread(model, before_last, rows, out, device, where)
    else:
        with progress() as bar:
            task = bar.add_task("tokens of both towers", total=len(places), status="")
            store = look_up("tasks.label.tokens:store_tokens")(
                towers.vision,
                towers.text,
                before_last,
                rows,
                out,
                choose_device(device),
                lambda count: bar.update(task, advance=count),
            )
    shapes = ", ".join(f"{name} {array.shape} {array.dtype}" for name, array in store.fields.items())
    print(f"{out}: {counted(len(places), 'row')}; {shapes}")
