"""The question-answering model that ships: right about drawings, unwilling about photographs."""

import json

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


def test_workers_answer_what_one_process_answers(tmp_path, run_patchword, in_place_of_ray):
    """Questions about three drawings, one of which cannot be read: `predict` writes the same rows."""
    rows = []
    for number, (shape, colour) in enumerate((("circle", "red"), ("triangle", "teal"))):
        drawing(shape, colour).save(tmp_path / f"{number}.png")
        rows += [(f"what color is the {shape}?", number), ("what shape is present?", number)]
    (tmp_path / "2.png").write_bytes(b"no picture")
    rows += [("what shape is present?", 2), ("is there a teal shape?", 1)]
    lines = [
        {"question_id": n, "image": f"{picture}.png", "question": text, "answer": "red", "split": "val"}
        for n, (text, picture) in enumerate(rows)
    ]
    (tmp_path / "q.jsonl").write_text("\n".join(map(json.dumps, lines)))
    arguments = (
        "predict",
        "easy-vqa",
        "--data",
        tmp_path / "q.jsonl",
        "--images",
        tmp_path,
        "--split",
        "val",
    )
    here = run_patchword(*arguments, "--out", tmp_path / "here.json")
    assert here.returncode == 1, here.stderr
    spread = ("--cluster", "local", "--parts", tmp_path / "parts")
    there = run_patchword(*arguments, "--out", tmp_path / "there.json", *spread)
    assert there.returncode == 1 and "2.png" in there.stderr and not (tmp_path / "parts").exists()
    assert "5 answers, 1 question left out: pictures could not be read" in there.stdout
    found = [json.loads((tmp_path / name).read_text()) for name in ("here.json", "there.json")]
    assert found[0] == found[1] and {row["answer"] for row in found[1]} >= {"red", "circle", "teal", "yes"}


@pytest.mark.parametrize(
    "name", ["astronaut", "chelsea", "coffee", "rocket", "camera", "coins", "moon", "page", "text"]
)
def test_it_does_not_pretend_to_know_photographs(model, name):
    with pytest.raises(DataError, match="unlike the pictures that easy-vqa was trained on"):
        model.ask(getattr(skimage.data, name)(), "what shape is present?")
