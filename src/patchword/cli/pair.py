"""`patchword pair`: how well a text fits a picture, word by word."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from patchword.cli.outputs import (
    FIGURES,
    PAGES,
    AllowUrls,
    Overwrite,
    complain,
    print_json,
    refuse_existing,
    refuse_suffix,
)
from patchword.files import write_text

DEFAULT_MODEL = "laps"


def pair(
    photo: Annotated[str, typer.Argument(help="The picture.")],
    text: Annotated[str, typer.Argument(help="The text, in words.")],
    model: Annotated[
        str, typer.Option("--model", help="Alignment model: a shipped name, a folder or a hub id.")
    ] = DEFAULT_MODEL,
    explain: Annotated[
        Path | None,
        typer.Option(
            "--explain",
            help="Write what was kept, merged, dropped, and each word's patch: .html, .png, .svg or .pdf.",
        ),
    ] = None,
    overwrite: Overwrite = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print the result as one JSON object.")] = False,
    device: Annotated[
        str | None, typer.Option(help="cpu, cuda, mps; the best there is where left out.")
    ] = None,
    allow_urls: AllowUrls = False,
) -> None:
    """Print the similarity of a picture and a text, and for each word its best patch (row, column) with the
    cosine."""
    from patchword.data.pictures import open_picture, seen_part
    from patchword.tasks.align.model import load_alignment
    from patchword.tasks.align.page import pair_figure, pair_page

    refuse_suffix("--explain", explain, (*PAGES, *FIGURES))
    refuse_existing(overwrite, {"--explain": explain})
    picture = open_picture(photo, allow_urls=allow_urls)
    aligner = load_alignment(model, device)
    found = aligner.explain(picture, text)
    remarks = aligner.remarks(text)
    for remark in remarks:
        complain(remark)
    if explain is not None:
        seen = seen_part(picture, aligner.settings.preprocessing)
        if explain.suffix.lower() in PAGES:
            write_text(explain, pair_page(found, seen, Path(photo).name))
        else:
            pair_figure(found, seen, explain)
    if as_json:
        words = [
            {
                "word": one.word,
                "nearest": one.found,
                "cosine": one.cosine,
                "row": one.patch[0],
                "column": one.patch[1],
            }
            for one in found.words
        ]
        row = {
            "image": photo,
            "text": text,
            "similarity": found.similarity,
            "cosine": found.cosine,
            "words": words,
            "remarks": remarks,
        }
        print_json({**row, "kept": found.kept_hw.astype(int).tolist()})
        return
    rows, columns = found.kept_hw.shape
    kept = f"{int(found.kept_hw.sum())} of {rows * columns} patches kept"
    print(f"similarity {found.similarity:.3f}, cosine of the towers {found.cosine:.3f}, {kept}")
    for one in found.words:
        place = f"row {one.patch[0] + 1} of {rows}, column {one.patch[1] + 1} of {columns}"
        dropped = "" if found.kept_hw[one.patch] else " (dropped)"
        print(f"{one.cosine:6.3f}  {one.word}: {one.found}, {place}{dropped}")
