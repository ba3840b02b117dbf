"""The two commands as a person types them, with a model of colours in place of two towers."""

import json

import numpy as np
import pytest
from PIL import Image
from typer.testing import CliRunner

import patchword.tasks.retrieve.load as load_file
from patchword.cli import app


class Colours:
    """A picture is its mean colour, a text the colours it names."""

    identity = "colours"

    def embed_images(self, pictures):
        return np.stack(
            [np.asarray(picture.resize((1, 1)), dtype=np.float32).reshape(3) + 1 for picture in pictures]
        )

    def embed_texts(self, texts):
        return np.array(
            [[text.count(name) + 0.01 for name in ("red", "green", "blue")] for text in texts],
            dtype=np.float32,
        )


@pytest.fixture
def run(monkeypatch):
    """Run `patchword` in this process; the model is the one of colours, whatever its name."""
    monkeypatch.setattr(load_file, "load_two_towers", lambda name, device=None: Colours())
    return lambda *words: CliRunner().invoke(app, [str(word) for word in words], catch_exceptions=True)


@pytest.fixture
def photos(tmp_path):
    folder = tmp_path / "photos"
    folder.mkdir()
    for name, colour in (("r.png", "red"), ("b\n<b>.png", "blue")):
        Image.new("RGB", (6, 6), colour).save(folder / name)
    return folder


@pytest.fixture
def out(run, photos, tmp_path):
    assert run("index", photos, "--out", tmp_path / "out").exit_code == 0
    return tmp_path / "out"


def test_index_says_what_it_did_and_what_it_skipped(run, photos, tmp_path):
    (photos / "bad.jpg").write_bytes(b"no picture")
    out = tmp_path / "out"
    first = run("index", photos, "--out", out)
    assert first.exit_code == 1
    assert f"2 pictures in {out}: 2 added, 0 changed, 0 moved, 0 removed, 0 as before, 1 skipped" in first.stdout
    assert f"patchword: skipped {photos}/bad.jpg: " in first.stderr and len(first.stdout.splitlines()) == 1
    result = json.loads(run("index", photos, "--out", out, "--json").stdout)
    assert (result["kept"], result["pictures"]) == (3, 2)
    assert result["bad"][0]["path"] == str(photos / "bad.jpg")


def test_search_by_words_prints_a_line_each(run, out):
    printed = run("search", out, "a blue thing", "-k", "1").stdout
    assert printed.startswith("1.000  ") and "b\\n<b>.png" in printed and len(printed.splitlines()) == 1


def test_search_by_picture_with_json_and_a_page(run, out, photos, tmp_path):
    page = tmp_path / "page.html"
    printed = run("search", out, "--like", photos / "r.png", "-k", "5", "--json", "--html", page).stdout
    results = json.loads(printed)["results"]
    assert [one["path"] for one in results] == [str(photos / "r.png"), str(photos / "b\n<b>.png")]
    assert page.read_text(encoding="utf-8").count("data:image/jpeg;base64,") == 2
