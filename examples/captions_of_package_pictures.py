"""Captions twenty pictures of installed packages, to show what the shipped model can and cannot do.

    pip install scikit-image scikit-learn
    python examples/captions_of_package_pictures.py --sheet docs/images/examples.png > captions.md

The captions are printed as a table and optionally drawn on a sheet. Of the pictures that show one thing, the
table says whether the caption names it; the accepted words were written down before any caption was seen.
"""

from __future__ import annotations

import textwrap
from importlib.util import find_spec
from pathlib import Path
from typing import Annotated

import typer
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

import patchword
from patchword.data.pictures import open_picture
from patchword.tasks.caption.concepts import names
from patchword.tasks.caption.result import Caption

SKIMAGE = """
astronaut.png brick.png camera.png chelsea.png clock_motion.png coffee.png coins.png color.png
grass.png gravel.png horse.png hubble_deep_field.jpg moon.png motorcycle_left.png page.png
rocket.jpg text.png
""".split()
PICTURES = (
    *(("skimage", f"data/{name}") for name in SKIMAGE),
    ("sklearn", "datasets/images/china.jpg"),
    ("sklearn", "datasets/images/flower.jpg"),
    ("matplotlib", "mpl-data/sample_data/grace_hopper.jpg"),
)

ACCEPTED = {
    "astronaut.png": ("astronaut", "space suit", "spacesuit"),
    "brick.png": ("brick", "wall"),
    "camera.png": ("camera", "tripod"),
    "chelsea.png": ("cat",),
    "coffee.png": ("coffee", "cup", "espresso"),
    "coins.png": ("coin",),
    "grass.png": ("grass",),
    "gravel.png": ("gravel", "stone"),
    "horse.png": ("horse",),
    "hubble_deep_field.jpg": ("star",),
    "moon.png": ("moon",),
    "motorcycle_left.png": ("motorcycle", "scooter"),
    "page.png": ("page", "text"),
    "rocket.jpg": ("rocket", "missile"),
    "text.png": ("page", "text"),
    "china.jpg": ("palace", "temple", "pagoda"),
    "flower.jpg": ("flower",),
    "grace_hopper.jpg": ("uniform",),
}
"""The words of which one names the main thing of a picture; the other two pictures show no single thing."""


def main(
    model: Annotated[str, typer.Option(help="Model that captions.")] = "flickr8k",
    sheet: Annotated[Path | None, typer.Option(help="PNG to write with all pictures and captions.")] = None,
) -> None:
    """Print a table; with --sheet, also draw the pictures with their captions."""
    paths = [Path(find_spec(package).origin).parent / name for package, name in PICTURES]
    captions = patchword.load(model, device="cpu").caption(paths, trace=False)
    print("| picture | caption | names its thing |\n| --- | --- | --- |")
    named, wrong = 0, 0
    for (package, name), caption in zip(PICTURES, captions, strict=True):
        accepted = ACCEPTED.get(Path(name).name)
        verdict = (
            "" if accepted is None else "yes" if any(names(caption.text, word) for word in accepted) else "no"
        )
        named += verdict == "yes"
        wrong += verdict == "no" and not caption.unsure
        print(f"| {package}: {Path(name).name} | {shown(caption)} | {verdict} |")
    print(f"\n{named} of {len(ACCEPTED)} named; {wrong} of the others come without being marked unsure")
    if sheet is None:
        return
    figure = Figure(figsize=(13, 12), layout="constrained")
    FigureCanvasAgg(figure)
    for axes, path, caption in zip(figure.subplots(4, 5).flat, paths, captions, strict=True):
        axes.imshow(open_picture(path))
        axes.set_title("\n".join(textwrap.wrap(shown(caption), 30)), fontsize=10)
        axes.axis("off")
    figure.savefig(sheet, dpi=70)


def shown(caption: Caption) -> str:
    """The caption as the command prints it."""
    return f"unsure: {caption.text}" if caption.unsure else caption.text


if __name__ == "__main__":
    typer.run(main)
