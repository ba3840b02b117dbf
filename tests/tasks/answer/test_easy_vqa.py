"""The question-answering model that ships: right about drawings, unwilling about photographs."""

import pytest
import skimage.data
from PIL import Image, ImageDraw

from patchword.errors import DataError
from patchword.tasks.answer.model import load_answerer

COLOURS = {"red": (255, 0, 0), "teal": (0, 128, 128), "yellow": (255, 255, 0), "black": (0, 0, 0)}


def drawing(shape, colour):
    picture = Image.new("RGB", (256, 256), (240, 236, 250))
    pen = ImageDraw.Draw(picture)
    if shape == "circle":
        pen.ellipse((60, 80, 150, 170), fill=COLOURS[colour])
    elif shape == "rectangle":
        pen.rectangle((60, 100, 180, 170), fill=COLOURS[colour])
    else:
        pen.polygon([(120, 60), (60, 170), (180, 170)], fill=COLOURS[colour])
    return picture


@pytest.fixture(scope="module")
def model():
    return load_answerer("easy-vqa", "cpu")


@pytest.mark.parametrize("colour", COLOURS)
@pytest.mark.parametrize("shape", ["circle", "rectangle", "triangle"])
def test_drawings(model, shape, colour):
    picture = drawing(shape, colour)
    expected = {
        "what color is the shape?": colour,
        f"what color is the {shape}?": colour,
        "what shape is present?": shape,
        f"is there a {colour} shape?": "yes",
        f"is there a {'blue' if colour != 'blue' else 'red'} shape?": "no",
        f"does the image not contain a {shape}?": "no",
    }
    found = model.ask([picture] * len(expected), list(expected))
    assert [best[0].text for best in found] == list(expected.values())


@pytest.mark.parametrize(
    "name", ["astronaut", "chelsea", "coffee", "rocket", "camera", "coins", "moon", "page", "text"]
)
def test_it_does_not_pretend_to_know_photographs(model, name):
    with pytest.raises(DataError, match="unlike the pictures that easy-vqa was trained on"):
        model.ask(getattr(skimage.data, name)(), "what shape is present?")
