"""The two commands as a person types them, with a model of colours in place of two towers."""

import json
import os
import shutil
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from typer.testing import CliRunner

import patchword.tasks.retrieve.load as load_file
import patchword.tasks.retrieve.query as query_file
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

    def remarks(self, text):
        return [f"the model does not know: {word}" for word in text.split() if word == "zebra"]


@pytest.fixture
def run(monkeypatch, tmp_path):
    """Run `patchword` in this process; the model is the one of colours, whatever its name."""
    monkeypatch.setattr(load_file, "load_two_towers", lambda name, device=None: Colours())
    monkeypatch.setattr(query_file, "load_query_towers", lambda name: None)
    monkeypatch.setenv("PATCHWORD_CACHE", str(tmp_path / "cache"))
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
    assert (
        f"2 pictures in {out}: 2 added, 0 changed, 0 moved, 0 removed, 0 as before, 1 skipped" in first.stdout
    )
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
    page.write_text("written by hand")
    assert "exists already" in str(run("search", out, "red", "--html", page).exception)
    assert page.read_text() == "written by hand"
    assert run("search", out, "red", "--html", page, "--overwrite").exit_code == 0


def test_a_path_that_no_longer_exists_is_marked(run, out, photos):
    (photos / "r.png").unlink()
    found = run("search", out, "red")
    assert "r.png  (no longer exists)" in found.stdout and found.stdout.count("no longer exists") == 1
    assert "1 of these no longer exist: " in found.stderr
    results = json.loads(run("search", out, "red", "--json").stdout)["results"]
    assert [one["exists"] for one in results] == [False, True]


def test_words_that_the_model_does_not_know_are_named(run, out, tmp_path):
    found = run("search", out, "a zebra and something red", "--json", "--html", tmp_path / "page.html")
    assert json.loads(found.stdout)["remarks"] == ["the model does not know: zebra"]
    assert "patchword: the model does not know: zebra" in found.stderr
    assert "the model does not know: zebra" in (tmp_path / "page.html").read_text(encoding="utf-8")


def test_a_folder_is_indexed_and_searched_in_one_command(run, photos, tmp_path):
    (photos / "bad.jpg").write_bytes(b"no picture")
    before = sorted(os.listdir(photos))
    first = run("search", photos, "something red", "-k", "1")
    assert first.stdout.startswith("1.000  ") and first.stdout.strip().endswith("r.png")
    assert "2 pictures, 2 of them new or changed, 1 could not be read" in first.stderr
    assert f"{photos}/bad.jpg: " in first.stderr and sorted(os.listdir(photos)) == before
    (photos / "bad.jpg").unlink()
    run("search", photos, "something red")
    Image.new("RGB", (6, 6), (0, 250, 0)).save(photos / "g.png")
    again = run("search", photos, "something green", "-k", "1")
    assert again.stdout.strip().endswith("g.png") and "3 pictures, 1 of them new" in again.stderr
    assert run("search", photos, "red").stderr == "", "nothing has changed, and nothing is said"


def test_a_kept_index_that_is_damaged_or_of_other_weights_is_made_anew(run, photos, tmp_path, monkeypatch):
    run("search", photos, "red")
    kept = next((tmp_path / "cache" / "indexes").iterdir())
    next(kept.glob("vectors-*")).write_bytes(b"")
    monkeypatch.setattr(Colours, "identity", "newer colours")
    assert run("search", photos, "red", "-k", "1").stdout.strip().endswith("r.png")
    next(kept.glob("pictures-*")).write_bytes(b"")
    assert run("search", photos, "red", "-k", "1").stdout.strip().endswith("r.png")


def test_an_emptied_folder_is_refused_by_a_search_too(run, photos):
    run("search", photos, "red")
    for path in photos.iterdir():
        path.unlink()
    found = run("search", photos, "red")
    assert "the folder is empty, and the index holds 2 pictures of it" in str(found.exception)


def test_a_place_that_does_not_exist_is_said(run, tmp_path):
    assert "no index here" in str(run("search", tmp_path / "nowhere", "red").exception)


def test_check_repair_and_prune(run, out, photos):
    whole = run("index", "--out", out, "--check")
    assert whole.exit_code == 0 and "2 pictures in 1 segment: all as it was written" in whole.stdout
    vectors = next(out.glob("vectors-*"))
    vectors.write_bytes(vectors.read_bytes()[:-4])
    found = run("index", "--out", out, "--check", "--json")
    assert found.exit_code == 1 and json.loads(found.stdout)["damaged"][0]["file"] == vectors.name
    assert f"`patchword index FOLDER --out {out} --repair`" in run("index", "--out", out, "--check").stdout
    repaired = run("index", photos, "--out", out, "--repair")
    assert "1 picture kept their vectors, 1 are known to have lost them" in repaired.stderr
    assert "2 pictures in" in repaired.stdout and "1 added" in repaired.stdout
    (photos / "r.png").unlink()
    assert "1 removed" in run("index", "--out", out, "--prune").stdout
    assert run("index", "--out", out).exit_code != 0


def test_moved_and_absent_pictures_are_told(run, out, photos, tmp_path):
    photos.rename(tmp_path / "moved")
    assert "0 added, 0 changed, 2 moved, 0 removed" in run("index", tmp_path / "moved", "--out", out).stdout
    shutil.rmtree(tmp_path / "moved")
    (tmp_path / "moved").mkdir()
    refused = run("index", tmp_path / "moved", "--out", out)
    assert refused.exit_code != 0 and "--allow-empty" in str(refused.exception)
    kept = run("index", "--out", out, "--prune")
    assert "kept 2 pictures of" in kept.stderr and "0 removed" in kept.stdout
    assert "2 removed" in run("index", tmp_path / "moved", "--out", out, "--allow-empty").stdout


def test_names_that_are_no_text(run, tmp_path):
    folder = Path(os.fsdecode(os.fsencode(tmp_path) + b"/p\xff"))
    try:
        folder.mkdir()
    except OSError:
        pytest.skip("this file system takes UTF-8 names only")
    Image.new("RGB", (6, 6), "red").save(folder / os.fsdecode(b"\xfe.png"))
    (folder / os.fsdecode(b"bad\xfe.jpg")).write_bytes(b"no picture")
    page = tmp_path / "page.html"
    assert run("index", folder, "--out", folder / "out").exit_code == 1
    found = run(
        "search", folder / "out", "--like", folder / os.fsdecode(b"\xfe.png"), "--json", "--html", page
    )
    assert os.fsencode(json.loads(found.stdout)["results"][0]["path"]).endswith(b"\xfe.png")
    assert "data:image/jpeg" in page.read_text(encoding="utf-8")
    assert run("search", folder, "red").stdout.startswith("1.000")
