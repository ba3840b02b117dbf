"""`patchword label`: which of some labels fits a picture: labels given by name, or those that a labelling
model was trained on."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from patchword.cli.index import DEFAULT_MODEL
from patchword.cli.many import Cluster
from patchword.cli.outputs import (
    PAGES,
    AllowUrls,
    Overwrite,
    complain,
    print_json,
    refuse_existing,
    refuse_suffix,
)
from patchword.errors import ConfigError, DataError, PictureError, counted
from patchword.files import write_text

if TYPE_CHECKING:
    import numpy as np
    from PIL import Image

    from patchword.data.sources import PictureListing
    from patchword.tasks.label.result import Labels

BATCH = 32


def label(
    photos: Annotated[list[str], typer.Argument(help="Pictures, folders, globs.")],
    labels: Annotated[
        str | None,
        typer.Option(
            "--labels",
            help='What to choose from, with commas between: "a dog, a cat"; not for a trained labelling '
            "model.",
        ),
    ] = None,
    model: Annotated[
        str,
        typer.Option(
            "--model",
            help="Two towers (shipped name, folder, hub id, hub:ID of a CLIP), or a trained labelling model.",
        ),
    ] = DEFAULT_MODEL,
    text: Annotated[str, typer.Option(help="Labelling models: the text that goes with the pictures.")] = "",
    explain: Annotated[
        Path | None,
        typer.Option(
            help=(
                "Labelling models: write a page (.html), or a .png of one picture, of what the query "
                "prompts gathered."
            )
        ),
    ] = None,
    overwrite: Overwrite = False,
    as_json: Annotated[
        bool, typer.Option("--json", help="One JSON object per line: image, labels with their probabilities.")
    ] = False,
    device: Annotated[
        str | None, typer.Option(help="cpu, cuda, mps; the best there is where left out.")
    ] = None,
    allow_urls: AllowUrls = False,
    cluster: Cluster = None,
    out: Annotated[
        Path | None, typer.Option("--out", help="With --cluster: folder of the Parquet files.")
    ] = None,
) -> None:
    """Print the labels of each picture, best first, with their probabilities among the labels given; a
    picture that cannot be read is one line on standard error, and exit status 1 at the end."""
    from patchword.data.sources import find_pictures
    from patchword.tasks.table import task_of

    trained = task_of(model) == "label"
    if trained and labels is not None:
        raise ConfigError(f"{model} has its own labels, those that it was trained on: leave out --labels")
    if not trained and (text or explain is not None):
        raise ConfigError(
            f"--text and --explain are for models of `patchword train` with task label, and {model} is "
            "none: leave them out"
        )
    refuse_suffix("--explain", explain, (*PAGES, ".png"))
    refuse_existing(overwrite, {"--explain": explain})
    if out is not None and cluster is None:
        raise ConfigError("--out is for --cluster; without it labels are printed")
    if trained:
        if cluster is not None:
            raise ConfigError(f"--cluster labels by two towers, and {model} is a trained labelling model")
        raise typer.Exit(_trained(find_pictures(photos, allow_urls), model, text, explain, as_json, device))
    if labels is None:
        raise ConfigError(
            '--labels is missing: name what to choose from, for instance --labels "a dog, a cat"'
        )
    if cluster is not None:
        from patchword.cli.many import make_job, on_cluster, refuse_with_cluster
        from patchword.tasks.retrieve.many import LABEL_COLUMNS

        refuse_with_cluster(json=as_json)
        settings = {"model": model, "device": device, "labels": split_labels(labels)}
        job = make_job(out, "tasks.retrieve.many:Labels", settings, LABEL_COLUMNS, BATCH)
        raise typer.Exit(on_cluster(photos, job, cluster))
    raise typer.Exit(_zero_shot(find_pictures(photos, allow_urls), labels, model, as_json, device))


def _opened(paths: list[Path | str]) -> Iterator[tuple[list[Path | str], list[Image.Image], int]]:
    """Pictures some at a time, and how many of them could not be read; each of these is a line on standard
    error."""
    from patchword.data.isolated import PictureReader

    # Only what `find_pictures` let through can be an address.
    with PictureReader(allow_urls=True, isolated=len(paths) > 1) as reader:
        for first in range(0, len(paths), BATCH):
            read, pictures, bad = [], [], 0
            for path in paths[first : first + BATCH]:
                try:
                    pictures.append(reader.open(path))
                    read.append(path)
                except PictureError as error:
                    complain(error)
                    bad += 1
            yield read, pictures, bad


def _zero_shot(found: PictureListing, labels: str, model: str, as_json: bool, device: str | None) -> int:
    """Labels by the cosine of picture and words; returns the exit status."""
    names = split_labels(labels)
    from patchword.cli.left_out import report_left_out
    from patchword.tasks.retrieve.query import load_labeller

    paths = found.pictures
    towers = load_labeller(model, len(paths), len(names), device)
    for remark in dict.fromkeys(remark for name in names for remark in towers.remarks(name)):
        complain(remark)
    bad = 0
    for read, pictures, unreadable in _opened(paths):
        bad += unreadable
        if pictures:
            _print(read, names, towers.label(pictures, names), as_json)
    lost = report_left_out(found, f"{counted(len(paths) - bad, 'picture')} labelled", bad, as_json)
    return 1 if bad or lost else 0


def _trained(
    found: PictureListing, model: str, text: str, explain: Path | None, as_json: bool, device: str | None
) -> int:
    """Labels of a model that was trained on them; returns the exit status."""
    from patchword.cli.left_out import report_left_out
    from patchword.data.pictures import seen_part
    from patchword.tasks.label.model import load_labelling_model
    from patchword.tasks.label.page import gathered_figure, gathered_page
    from patchword.text.subwords import remarks_on

    paths = found.pictures
    refuse_suffix("--explain", explain, (*PAGES, ".png"), len(paths))
    classifier = load_labelling_model(model, device)
    settings, bad = classifier.settings, 0
    for remark in remarks_on(classifier.vocabulary, text, settings.max_words + 2) if text else ():
        complain(remark)
    items: list[tuple[str, Image.Image, Labels]] = []
    for read, pictures, unreadable in _opened(paths):
        bad += unreadable
        if pictures:
            _print(
                read,
                list(settings.labels),
                classifier.probabilities(pictures, [text] * len(pictures)),
                as_json,
            )
        if explain is not None:
            for path, picture in zip(read, pictures, strict=True):
                seen = seen_part(picture, settings.preprocessing)
                items.append((str(path), seen, classifier.explain(picture, text)))
    if explain is not None and items and explain.suffix.lower() == ".png":
        gathered_figure(items[0][1], items[0][2], explain)
    elif explain is not None:
        write_text(explain, gathered_page(items))
    lost = report_left_out(found, f"{counted(len(paths) - bad, 'picture')} labelled", bad, as_json)
    return 1 if bad or lost else 0


def split_labels(labels: str) -> list[str]:
    """The labels between the commas, each once. Raises DataError for fewer than two: one alone always has
    probability 1."""
    names = list(dict.fromkeys(name.strip() for name in labels.split(",") if name.strip()))
    if len(names) < 2:
        raise DataError(
            f"--labels {labels!r} names {len(names)} label; expected two or more with commas between, such "
            'as "a dog, a cat"'
        )
    return names


def _print(paths: list[Path | str], names: list[str], shares_BL: np.ndarray, as_json: bool) -> None:
    for path, shares_L in zip(paths, shares_BL, strict=True):
        ranked = sorted(zip(names, shares_L.tolist(), strict=True), key=lambda pair: -pair[1])
        if as_json:
            row = {
                "image": str(path),
                "labels": [{"label": name, "probability": share} for name, share in ranked],
            }
            print_json(row)
        else:
            print("\t".join([str(path), *(f"{name} {share:.3f}" for name, share in ranked)]), flush=True)
