"""A photograph that is stored turned is seen upright, once and only once, on every way by which a picture
comes in.

Every test gives the same photograph nine times, upright and in the eight ways in which a camera may have
stored it, and expects nine equal results.
"""

import io
import json
import re

import numpy as np
import pytest
from PIL import Image

from patchword.data.pictures import Preprocessing, open_picture

NUMBERS = range(1, 9)


@pytest.fixture
def names(turned_photos):
    """The nine files, the upright one first."""
    return [turned_photos / "upright.png", *(turned_photos / f"turned-{number}.png" for number in NUMBERS)]


@pytest.fixture
def answers_of(patchword):
    """A command's JSON lines without the name of the picture, by that name."""

    def call(*words):
        status, out, err = patchword(*words, "--json")
        assert status == 0, err
        rows = {row.pop("image"): row for row in map(json.loads, out.splitlines())}
        return [rows[name] for name in sorted(rows)]

    return call


def all_equal(results):
    return len(results) == 9 and all(one == results[0] for one in results)


@pytest.mark.parametrize("number", NUMBERS)
@pytest.mark.parametrize("kind", ["PNG", "TIFF", "WEBP", "JPEG"])
def test_opening_twice_is_opening_once(stored_turned, turned_photos, number, kind):
    options = {
        "WEBP": {"lossless": True, "exact": True},
        "JPEG": {"quality": 100, "subsampling": 0},
    }.get(kind, {})
    upright = open_picture(turned_photos / "upright.png")
    content = stored_turned(upright, number, kind, **options)
    once = open_picture(content)
    difference = np.abs(np.asarray(once).astype(int) - np.asarray(upright).astype(int))
    assert difference.max() <= (16 if kind == "JPEG" else 0)
    with Image.open(io.BytesIO(content)) as image:
        assert open_picture(once) == open_picture(open_picture(image)) == once
    buffer = io.BytesIO()
    once.save(buffer, "PNG")  # nor does a file that is written from it turn anybody's copy
    assert open_picture(buffer.getvalue()) == once


def test_an_orientation_in_xmp_is_applied_once(turned_photos):
    upright = open_picture(turned_photos / "upright.png")
    packet = b'<x:xmpmeta xmlns:x="adobe:ns:meta/"><rdf:Description tiff:Orientation="6"/></x:xmpmeta>'
    buffer = io.BytesIO()
    upright.transpose(Image.Transpose.ROTATE_90).save(buffer, "WEBP", lossless=True, exact=True, xmp=packet)
    once = open_picture(buffer.getvalue())
    assert once == upright and open_picture(once) == upright


def test_from_python_by_path_text_bytes_image_and_array(names):
    import patchword

    model = patchword.load("flickr8k", "cpu")
    images = [Image.open(io.BytesIO(name.read_bytes())) for name in names]
    opened = [open_picture(name) for name in names]
    converted = [image.convert("RGB") for image in images]
    arrays = [np.asarray(picture) for picture in opened]
    for pictures in (names, list(map(str, names)), images, opened, converted, arrays):
        found = model.caption(pictures, beams=1, trace=False)
        assert all_equal([(one.text, round(one.log_probability, 4)) for one in found])


def test_caption_of_a_folder(answers_of, turned_photos):
    found = answers_of("caption", turned_photos, "--device", "cpu", "--beam", 1, "--batch", 1)
    assert all_equal(found)


def test_predict(patchword, names, turned_photos, tmp_path):
    rows = [f"{name.name},a woman smiles,test" for name in names]
    (tmp_path / "captions.csv").write_text("\n".join(["image,caption,split", *rows]))
    data = ("--data", tmp_path / "captions.csv", "--images", turned_photos)
    command = ("predict", "flickr8k", *data, "--out", tmp_path / "out.json", "--device", "cpu", "--batch", 1)
    assert patchword(*command)[0] == 0
    assert all_equal([row["caption"] for row in json.loads((tmp_path / "out.json").read_text())])


def test_the_vectors_of_an_index(turned_photos, names, towers, tmp_path):
    from patchword.search.index import open_index, update_index
    from patchword.search.records import IndexModel
    from patchword.tasks.retrieve.load import load_two_towers

    model = load_two_towers(towers, "cpu")
    update_index(turned_photos, tmp_path / "index", IndexModel(model.embed_images, model.identity), batch=1)
    with open_index(tmp_path / "index") as index:
        for name in names:
            found = index.search(model.embed_images([open_picture(name)])[0], 9)
            assert len(found) == 9 and min(one.score for one in found) == pytest.approx(1, abs=1e-5)


def test_search_by_a_picture(patchword, turned_photos, names, towers, tmp_path):
    assert patchword("index", turned_photos, "--out", tmp_path / "index", "--model", towers)[0] == 0
    for name in names:
        status, out, _ = patchword("search", tmp_path / "index", "--like", name, "--json")
        scores = [row["score"] for row in json.loads(out)["results"]]
        assert status == 0 and scores == pytest.approx([1] * 9, abs=1e-5)


def test_label_by_words(answers_of, turned_photos, towers):
    command = ("label", turned_photos, "--labels", "a dog, a cat", "--model", towers, "--device", "cpu")
    shares = [
        {label["label"]: round(label["probability"], 5) for label in row["labels"]}
        for row in answers_of(*command)
    ]
    assert all_equal(shares)


def test_pair(answers_of, names):
    found = [answers_of("pair", name, "a woman smiles", "--device", "cpu")[0] for name in names]
    assert all_equal(found)


def test_ask_and_its_page(answers_of, names, tmp_path):
    found, pages = [], []
    for name in names:
        page = tmp_path / f"{name.name}.html"
        asked = ("what shape is in the image?", "--model", "easy-vqa", "--anyway", "--explain", page)
        found += answers_of("ask", name, *asked, "--device", "cpu")
        pages.append(re.findall(r"data:image/jpeg;base64,[^\"]+", page.read_text()))
    assert all_equal(found) and all_equal(pages) and pages[0]


def test_the_picture_shown_on_the_page_of_a_caption(patchword, names, tmp_path):
    pages = []
    for name in names:
        page = tmp_path / f"{name.name}.html"
        assert patchword("caption", name, "--beam", 1, "--device", "cpu", "--explain", page)[0] == 0
        pages.append(re.findall(r"data:image/jpeg;base64,[^\"]+", page.read_text()))
    assert all_equal(pages) and pages[0]


def test_training_and_features_see_what_prediction_sees(turned_photos, names, towers, tmp_path):
    import torch

    from patchword.data.store import pixel_store
    from patchword.jobs.features import Pictures, store_features
    from patchword.tasks.label.tokens import DecodedInputs
    from patchword.tasks.retrieve.load import load_two_towers

    preprocessing = Preprocessing(size=(24, 32))
    expected = preprocessing.apply(open_picture(open_picture(names[0])))
    files = [name.name for name in names]
    pixels = pixel_store(turned_photos, files, preprocessing, tmp_path / "cache").fields["pixels"]
    assert all((row == expected).all() for row in pixels)
    vision = load_two_towers(towers, "cpu").model.vision
    square = Preprocessing(size=16)
    made = store_features(
        vision,
        Pictures(turned_photos, files, square),
        tmp_path / "store",
        torch.device("cpu"),
        lambda count: None,
    )
    grid_RNC = made.fields["grid_BNC"]
    assert np.allclose(grid_RNC, grid_RNC[:1], atol=1e-3) and np.abs(grid_RNC).max() > 0
    read_B3HW = DecodedInputs(turned_photos, square).load(files, None).pixels_B3HW
    assert (read_B3HW == read_B3HW[:1]).all()


def test_captions_of_the_service(names):
    pytest.importorskip("fastapi")
    from starlette.testclient import TestClient

    from patchword.serve.app import create_app
    from patchword.tasks.caption.load import load

    model = load("flickr8k", "cpu")
    with TestClient(create_app({"flickr8k": model}), base_url="http://127.0.0.1:8321") as client:
        answers = [
            client.post("/caption?beams=1&trace=1", content=name.read_bytes()).json() for name in names
        ]
    shown = ("caption", "log_probability", "width", "height", "tokens", "attention")
    assert all_equal([{key: answer[key] for key in shown} for answer in answers])
    assert (answers[0]["width"], answers[0]["height"]) == open_picture(names[0]).size


def test_pictures_of_a_report(turned_photos, names):
    from patchword.data.isolated import PictureReader
    from patchword.reports.report import sample_picture

    with PictureReader() as reader:
        pages = [sample_picture(turned_photos, {"file": name.name}, reader) for name in names]
    shown = [re.search(r'src="([^"]+)"', page).group(1) for page in pages]
    assert all_equal(shown)
