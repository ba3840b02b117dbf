"""Counts which pictures a question-answering model refuses as out-of-distribution, folder by folder.

    python benchmarks/familiarity.py easy-vqa easy_vqa/images Flicker8k_Dataset --limit 1000

For `easy-vqa` it also measures answers on drawings by another program. They are Pillow's, one shape in one
colour as in easy-VQA, without smooth edges; the two questions ask for colour and shape.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Annotated

import numpy as np
import typer
from PIL import Image, ImageDraw
from rich.console import Console
from rich.table import Table

from patchword.data.pictures import open_picture
from patchword.data.sources import find_pictures
from patchword.errors import PictureError
from patchword.layers.familiarity import mean_patch
from patchword.tasks.answer.model import AnsweringModel, load_answerer

COLOURS = {
    "red": (255, 0, 0),
    "green": (0, 255, 0),
    "blue": (0, 0, 255),
    "yellow": (255, 255, 0),
    "black": (0, 0, 0),
    "teal": (0, 128, 128),
    "gray": (128, 128, 128),
    "brown": (165, 42, 42),
}
SHAPES = ("circle", "rectangle", "triangle")


def main(
    model: Annotated[str, typer.Argument(help="Question-answering model.")],
    folders: Annotated[list[Path], typer.Argument(help="Folders of pictures.")],
    limit: Annotated[int, typer.Option(help="First pictures of each folder, by name.")] = 1000,
) -> None:
    """Print the table of refused pictures."""
    answerer = load_answerer(model, "cpu")
    table = Table(
        "pictures",
        "number",
        "nearest",
        "median",
        "refused",
        title=f"limit {float(answerer.model.familiarity.limit):.1f}",
    )
    for folder in folders:
        _row(table, answerer, str(folder), list(_readable(find_pictures([str(folder)])[:limit])))
    for size in (256, 64):
        random = np.random.default_rng(0)
        drawn = [draw(random, size) for _ in range(200)]
        pictures = [picture for picture, _, _ in drawn]
        _row(table, answerer, f"drawings, {size} pixels", pictures)
        colours = answerer.ask(pictures, ["what color is the shape?"] * 200, anyway=True)
        shapes = answerer.ask(pictures, ["what shape is present?"] * 200, anyway=True)
        right = [
            sum(best[0].text == known for best, known in zip(found, truth, strict=True))
            for found, truth in (
                (colours, [colour for _, colour, _ in drawn]),
                (shapes, [shape for _, _, shape in drawn]),
            )
        ]
        print(f"drawings, {size} pixels: colour right {right[0]}, shape right {right[1]} of 200")
    Console(width=100).print(table)


def draw(random: np.random.Generator, size: int) -> tuple[Image.Image, str, str]:
    """Draws a picture and returns it with its colour and its shape."""
    picture = Image.new("RGB", (size, size), tuple(int(value) for value in random.integers(230, 256, 3)))
    pen = ImageDraw.Draw(picture)
    colour, shape = list(COLOURS)[random.integers(8)], SHAPES[random.integers(3)]
    r = random.uniform(0.08, 0.25) * size
    x, y = random.uniform(r, size - r, 2)
    if shape == "circle":
        pen.ellipse((x - r, y - r, x + r, y + r), fill=COLOURS[colour])
    elif shape == "rectangle":
        w = r * random.uniform(0.5, 1)
        pen.rectangle((x - r, y - w, x + r, y + w), fill=COLOURS[colour])
    else:
        pen.polygon(
            [(x, y - r), (x - 0.9 * r, y + 0.7 * r), (x + 0.9 * r, y + 0.7 * r)], fill=COLOURS[colour]
        )
    return picture, colour, shape


def _readable(files: Iterable[Path]) -> Iterator[Image.Image]:
    """Yields the pictures, scaled down; those that cannot be decoded are named and skipped."""
    for file in files:
        try:
            picture = open_picture(file)
        except PictureError as error:
            print(error)
            continue
        picture.thumbnail((512, 512))
        yield picture


def _row(table: Table, answerer: AnsweringModel, name: str, pictures: list[Image.Image]) -> None:
    distances: list[float] = []
    for first in range(0, len(pictures), 64):
        features = answerer.features(pictures[first : first + 64])
        distances += answerer.model.familiarity.distance(mean_patch(features)).tolist()
    refused = sum(distance > float(answerer.model.familiarity.limit) for distance in distances)
    table.add_row(
        name, str(len(distances)), f"{min(distances):.1f}", f"{np.median(distances):.1f}", str(refused)
    )


if __name__ == "__main__":
    typer.run(main)
