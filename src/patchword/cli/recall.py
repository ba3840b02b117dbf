"""`patchword recall`: how often retrieval finds the right picture and the right caption."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated, Literal

import typer

from patchword.cli.index import DEFAULT_MODEL
from patchword.cli.outputs import Overwrite, refuse_existing
from patchword.errors import counted
from patchword.files import write_text

Protocol = Literal["flickr", "coco-1k", "coco-5k"]
"""How the field counts on the usual splits."""


def recall(
    data: Annotated[Path, typer.Option("--data", help="Annotations that name the pictures.")],
    images: Annotated[Path, typer.Option("--images", help="Folder of the pictures.")],
    model: Annotated[
        str,
        typer.Argument(help="Two towers or alignment model: shipped name, folder, hub id, hub:ID of a CLIP."),
    ] = DEFAULT_MODEL,
    split: Annotated[
        str, typer.Option("--split", help="Split to measure on; select models on val, report test once.")
    ] = "val",
    protocol: Annotated[
        Protocol,
        typer.Option(
            "--protocol",
            help="flickr, coco-5k: all pictures of the split; coco-1k: mean over folds of 1,000.",
        ),
    ] = "flickr",
    shortlist: Annotated[
        int | None,
        typer.Option(
            "--shortlist", min=1, help="Two stages: the best N by cosine are ranked again by alignment."
        ),
    ] = None,
    first: Annotated[
        str | None,
        typer.Option("--first", help="Two towers that make the shortlist; the model's own where left out."),
    ] = None,
    bf16: Annotated[
        bool, typer.Option("--bf16", help="Round the products of words and patches to bfloat16.")
    ] = False,
    resamples: Annotated[
        int,
        typer.Option(
            "--resamples", min=0, max=100_000, help="Bootstrap resamples for 95 % intervals; 0: none."
        ),
    ] = 0,
    out: Annotated[
        Path | None, typer.Option("--out", help="JSON file for the values in full precision.")
    ] = None,
    overwrite: Overwrite = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print the result as one JSON object.")] = False,
    device: Annotated[
        str | None, typer.Option(help="cpu, cuda, mps; the best there is where left out.")
    ] = None,
) -> None:
    """R@1, R@5, R@10 both ways, median and mean rank, rSum: all pictures of a split against their captions,
    five of each.
    """
    refuse_existing(overwrite, {"--out": out})
    from dataclasses import asdict

    from patchword.errors import DataError
    from patchword.log import progress
    from patchword.tasks.align.recall import RecallOptions, measure, read_split

    if first is not None and shortlist is None:
        raise DataError(f"--first {first} chooses a shortlist: say how long with --shortlist N")
    chosen = read_split(data, images, split, protocol)
    with progress() as bar:
        options = RecallOptions(protocol, shortlist, first, bf16, resamples, device)
        found = measure(model, chosen, options, bar)
    facts = {
        "model": model,
        "split": split,
        "protocol": protocol,
        "shortlist": shortlist,
        "first": first,
        **asdict(found),
    }
    if out is not None:
        write_text(out, json.dumps(facts, indent=1))
    if as_json:
        print(json.dumps(facts))
        return
    _print(model, split, found)


def _print(model: str, split: str, found) -> None:
    from rich.table import Table

    from patchword.log import console

    titles = ["", "R@1", "R@5", "R@10", "median rank", "mean rank"]
    what = f"{counted(found.pictures, 'picture')} of {split} x {counted(found.captions, 'caption')}"
    table = Table(*titles, title=f"{model}: {what}")
    kinds = [("", found.scores)] + (
        [("shortlist's own order: ", found.first_stage)] if found.first_stage else []
    )
    for kind, scores in kinds:
        for way, name in (("i2t", "picture to text"), ("t2i", "text to picture")):
            cells = [
                f"{scores[f'{way}_R@{k}']:.1f}" + _bounds(found, f"{way}_R@{k}", kind) for k in (1, 5, 10)
            ]
            table.add_row(kind + name, *cells, f"{scores[f'{way}_medR']:g}", f"{scores[f'{way}_meanR']:.1f}")
    console().print(table)
    print(f"rSum {found.scores['rSum']:.1f}{_bounds(found, 'rSum', '')}")
    if found.lost:
        print(
            f"lost by the shortlist, beyond recovery: {found.lost['i2t']:.1f} % of the pictures, "
            f"{found.lost['t2i']:.1f} % of the captions"
        )
    seconds = f"CPU seconds: encoding {found.seconds['encoding']:.1f}, ranking {found.seconds['ranking']:.1f}"
    print(
        f"{counted(found.compared, 'pair')} compared; {seconds}; peak memory {found.peak_mebibytes:.0f} MiB"
    )


def _bounds(found, name: str, kind: str) -> str:
    return (
        f" ({found.intervals[name][0]:.1f}-{found.intervals[name][1]:.1f})"
        if name in found.intervals and not kind
        else ""
    )
