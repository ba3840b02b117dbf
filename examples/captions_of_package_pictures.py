"""Captions twenty pictures of installed packages, to show what the shipped model can and cannot do.

    pip install scikit-image scikit-learn
    python examples/captions_of_package_pictures.py --sheet docs/images/examples.png > captions.md

The captions are printed as a table and optionally drawn on a sheet.
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


def main(
    model: Annotated[str, typer.Option(help="Model that captions.")] = "flickr8k",
    sheet: Annotated[Path | None, typer.Option(help="PNG to write with all pictures and captions.")] = None,
) -> None:
    """Print a table; with --sheet, also draw the pictures with their captions."""
    paths = [Path(find_spec(package).origin).parent / name for package, name in PICTURES]
    captions = patchword.load(model, device="cpu").caption(paths, trace=False)
    print("| picture | caption | log-probability |\n| --- | --- | ---: |")
    for (package, name), caption in zip(PICTURES, captions, strict=True):
        print(f"| {package}: {Path(name).name} | {caption.text} | {caption.log_probability:.1f} |")
    if sheet is None:
        return
    figure = Figure(figsize=(13, 12), layout="constrained")
    FigureCanvasAgg(figure)
    for axes, path, caption in zip(figure.subplots(4, 5).flat, paths, captions, strict=True):
        axes.imshow(open_picture(path))
        axes.set_title("\n".join(textwrap.wrap(caption.text, 30)), fontsize=10)
        axes.axis("off")
    figure.savefig(sheet, dpi=70)


if __name__ == "__main__":
    typer.run(main)
