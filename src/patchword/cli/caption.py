"""`patchword caption`: say what is in pictures."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from patchword.cli.many import Cluster
from patchword.cli.outputs import (
    FIGURES,
    PAGES,
    AllowUrls,
    Overwrite,
    Shots,
    complain,
    print_json,
    refuse_existing,
    refuse_suffix,
)
from patchword.errors import ConfigError, PictureError, counted
from patchword.files import write_text
from patchword.heap import keep
from patchword.lookup import import_torch
from patchword.tasks.caption.options import DecodingOptions, Precision

if TYPE_CHECKING:
    from patchword.data.isolated import PictureReader
    from patchword.tasks.caption.result import Caption

DEFAULT_MODEL = "flickr8k"

Beam = Annotated[
    int | None,
    typer.Option(
        min=1, max=100, help="Hypotheses that the search follows; the model's own number where left out."
    ),
]
LengthPenalty = Annotated[
    float | None,
    typer.Option(
        min=0, max=10, help="0: the sum of log-probabilities decides; 1: their mean; more: longer captions."
    ),
]
NoRepeat = Annotated[
    int | None,
    typer.Option(min=0, max=1000, help="No N words in a row occur twice in a caption; 0: allowed."),
]
MaxLength = Annotated[
    int | None,
    typer.Option(
        min=2, max=1000, help="Longest caption in tokens, its end included; the model's own where left out."
    ),
]
MinLength = Annotated[
    int, typer.Option(min=0, max=1000, help="Tokens that a caption has at least before it may end.")
]
Dtype = Annotated[
    Precision | None,
    typer.Option(help="Numbers to compute with: shorter ones are faster on GPUs, and less exact."),
]
Device = Annotated[str | None, typer.Option(help="cpu, cuda, mps; the best there is where left out.")]


def caption(
    paths: Annotated[list[str], typer.Argument(help="Pictures, folders, globs.")],
    model: Annotated[
        str,
        typer.Option(
            "--model", help="A shipped name, a folder, a hub id, or hub:ID of a transformers captioner."
        ),
    ] = DEFAULT_MODEL,
    beam: Beam = None,
    length_penalty: LengthPenalty = None,
    no_repeat: NoRepeat = None,
    max_length: MaxLength = None,
    min_length: MinLength = 0,
    as_json: Annotated[
        bool,
        typer.Option("--json", help="One JSON object per line: image, caption, score, tokens, complete."),
    ] = False,
    explain: Annotated[
        Path | None,
        typer.Option(
            help="Write a page (.html) that shows what made each word; .png, .svg or .pdf: a figure."
        ),
    ] = None,
    out: Annotated[
        Path | None,
        typer.Option(
            help="Write a CSV (image, caption, score, model); pictures that it holds already are left out."
        ),
    ] = None,
    sidecar: Annotated[
        bool,
        typer.Option("--sidecar", help="Write photo.txt beside every photo.jpg; one that is there is kept."),
    ] = False,
    overwrite: Overwrite = False,
    mention: Annotated[
        list[str] | None,
        typer.Option("--mention", help="Word that every caption must say; may be given several times."),
    ] = None,
    shots: Shots = None,
    device: Device = None,
    dtype: Dtype = None,
    batch: Annotated[int, typer.Option(min=1, help="Pictures that are captioned together.")] = 16,
    allow_urls: AllowUrls = False,
    cluster: Cluster = None,
) -> None:
    """Print a caption per picture; a picture that cannot be read is one line on standard error, and exit
    status 1 at the end."""
    options = DecodingOptions(
        beam, length_penalty, no_repeat, max_length, min_length, tuple(mention or ()), dtype
    )
    if cluster is not None:
        from patchword.cli.many import make_job, on_cluster, refuse_with_cluster
        from patchword.tasks.caption.options import COLUMNS

        refuse_with_cluster(explain=explain, sidecar=sidecar, overwrite=overwrite, json=as_json)
        settings = {"model": model, "device": device, "options": asdict(options)}
        job = make_job(out, "tasks.caption.many:Captions", settings, COLUMNS, batch)
        raise typer.Exit(on_cluster(paths, job, cluster))
    import_torch()
    keep()
    from patchword.cli.left_out import report_left_out
    from patchword.data.isolated import PictureReader
    from patchword.data.sources import find_pictures
    from patchword.log import progress
    from patchword.lookup import look_up
    from patchword.tasks.caption.csv_table import CaptionTable
    from patchword.tasks.caption.load import load
    from patchword.tasks.table import few_shots_of

    found = find_pictures(paths, allow_urls)
    addresses = [path for path in found.pictures if isinstance(path, str)]
    if sidecar and addresses:
        raise ConfigError(f"--sidecar writes beside a picture, and {addresses[0]} is an address: use --out")
    pictures = found.pictures
    table = None if out is None else CaptionTable(out, model, overwrite)
    if table is not None and table.done:
        there = sum(str(path) in table.done for path in pictures)
        pictures = [path for path in pictures if str(path) not in table.done]
        complain(f"{out}: {there} of the pictures are there already and are left out")
    refuse_suffix("--explain", explain, (*PAGES, *FIGURES), len(pictures))
    refuse_existing(overwrite, {"--explain": explain})
    captioner = load(model, device) if shots is None else look_up(few_shots_of(model))(model, device, shots)
    pages: list[tuple[str, Any, Caption]] = []
    beside = Sidecars(overwrite) if sidecar else None
    bad, cut = 0, 0
    shown = progress(len(pictures) > batch and sys.stderr.isatty())
    with shown as bar, PictureReader(allow_urls=allow_urls, isolated=len(pictures) > 1) as reader:
        task = bar.add_task("captions", total=len(pictures), status="")
        for chunk in _chunks(pictures, batch):
            good, failures = _open(chunk, reader)
            for _, error in failures:
                complain(error)
            bad += len(failures)
            images = [image for _, image in good]
            results = captioner.caption(images, trace=explain is not None, options=options) if good else []
            for (path, image), result in zip(good, results, strict=True):
                _print(path, result, as_json)
                cut += not result.complete
                if beside is not None:
                    beside.write(Path(path), result.text)
                if table is not None:
                    table.write(path, result)
                if explain is not None:
                    pages.append((str(path), _shown(image, result), result))
            bar.update(task, advance=len(chunk))
    if table is not None:
        table.close()
    if explain is not None:
        _explain(explain, pages)
    if cut:
        complain(
            f"{counted(cut, 'caption was', 'captions were')} cut off at the longest length: "
            "--max-length makes it longer"
        )
    if beside is not None and beside.kept:
        complain(
            f"{counted(len(beside.kept), 'text was', 'texts were')} there already and kept, "
            f"the first is {beside.kept[0]}: "
            "--overwrite "
            "replaces them"
        )
    lost = report_left_out(found, counted(len(pictures) - bad, "caption"), bad, as_json)
    raise typer.Exit(1 if bad or lost or (beside is not None and beside.kept) else 0)


UNSURE = "unsure: "
"""Before what is said of a picture unlike all that the model was trained on."""


def _chunks(pictures: list[Path | str], size: int) -> Iterator[list[Path | str]]:
    for first in range(0, len(pictures), size):
        yield pictures[first : first + size]


def _open(
    paths: list[Path | str], reader: PictureReader
) -> tuple[list[tuple[Path | str, Any]], list[tuple[Path | str, PictureError]]]:
    """Decoded pictures, and those that cannot be decoded with the reason."""
    images, failures = [], []
    for path in paths:
        try:
            images.append((path, reader.open(path)))
        except PictureError as error:
            failures.append((path, error))
    return images, failures


def _shown(image: Any, result: Caption) -> Any:
    """A small copy for the page where the caption carries none: models that keep no trace."""
    if result.picture is not None:
        return None
    small = image.copy()
    small.thumbnail((480, 480))
    return small


def _explain(out: Path, pages: list[tuple[str, Any, Caption]]) -> None:
    from patchword.tasks.caption.page import caption_figure, caption_page

    if out.suffix.lower() not in FIGURES:
        write_text(out, caption_page(pages))
    elif pages:
        caption_figure(pages[0][1], pages[0][2], out)


class Sidecars:
    """Writes photo.txt beside photo.jpg, and keeps what is there: such texts are what people train on."""

    def __init__(self, overwrite: bool) -> None:
        self._overwrite = overwrite
        self._written: set[Path] = set()
        self.kept: list[Path] = []
        """Texts that were there and say something else."""

    def write(self, picture: Path, text: str) -> None:
        """One text; where another is there, or was just written for a picture that differs in its suffix
        alone, it is kept."""
        path = picture.with_suffix(".txt")
        if path in self._written or (path.exists() and not self._overwrite):
            if path.read_bytes() != f"{text}\n".encode():
                self.kept.append(path)
            return
        self._written.add(path)
        path.write_bytes(f"{text}\n".encode())


def _print(path: Path | str, result: Caption, as_json: bool) -> None:
    if as_json:
        row = {
            "image": str(path),
            "caption": result.text,
            "score": result.log_probability,
            "tokens": list(result.tokens),
            "complete": result.complete,
        }
        if result.unsure is not None:
            row["unsure"] = result.unsure
            row["concepts"] = [
                {"word": one.word, "probability": round(one.probability, 4)} for one in result.named
            ]
        print_json(row)
    else:
        print(f"{path}\t{UNSURE if result.unsure else ''}{result.text}", flush=True)
