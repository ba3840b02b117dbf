"""`patchword point`: the region of a picture that a phrase names."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from patchword.cli.outputs import AllowUrls, Overwrite, complain, print_json, refuse_existing, refuse_suffix


def point(
    photo: Annotated[str, typer.Argument(help="The picture.")],
    phrase: Annotated[str, typer.Argument(help='What to point at, such as "the red cup".')],
    model: Annotated[
        str, typer.Option("--model", help="A model that ViLBERT pre-trained: its folder or hub id.")
    ],
    n_best: Annotated[int, typer.Option("-n", "--n-best", min=1, help="How many regions.")] = 3,
    out: Annotated[
        Path | None, typer.Option(help="PNG to write: the picture with the best region framed.")
    ] = None,
    overwrite: Overwrite = False,
    as_json: Annotated[
        bool, typer.Option("--json", help="Print one JSON object: image, phrase, regions with boxes.")
    ] = False,
    device: Annotated[
        str | None, typer.Option(help="cpu, cuda, mps; the best there is where left out.")
    ] = None,
    allow_urls: AllowUrls = False,
) -> None:
    """Print the regions that a phrase fits best, best first: probability, then left, top, right and bottom in
    pixels; --out draws the best one into the picture.
    """
    from patchword.data.pictures import open_picture
    from patchword.tasks.pretrain.point import draw_region, pixels_of, pointing_model

    refuse_suffix("--out", out, (".png",))
    refuse_existing(overwrite, {"--out": out})
    picture = open_picture(photo, allow_urls=allow_urls)
    found = pointing_model(model, device)
    unknown = found.unknown_words(phrase)
    if unknown:
        complain(f"the model never learnt {', '.join(unknown)}: the regions take no notice of it")
    for remark in found.cut_off(phrase):
        complain(remark)
    regions = found.point(picture, phrase, n_best)
    rows: list[dict[str, Any]] = [
        {"box": list(pixels_of(one, picture.size)), "probability": round(one.share, 4)} for one in regions
    ]
    if as_json:
        print_json({"image": photo, "phrase": phrase, "regions": rows})
    else:
        for row in rows:
            print(f"{row['probability']:.3f}  {' '.join(map(str, row['box']))}")
    if out is not None:
        draw_region(picture, regions[0], phrase, out)
