"""`predict` and `features` on workers give what one process gives, also when they are interrupted."""

import json

import numpy as np
import pytest

from patchword.data.store import Store
from patchword.jobs import sources

SPREAD = ("--cluster", "local", "--parts")


@pytest.fixture
def data(scenes, tmp_path, monkeypatch):
    """Half of a data set whose pictures are drawn, and one that is none."""
    monkeypatch.setattr(sources, "PART", 5)
    content = json.loads((scenes / "dataset.json").read_text())
    content["images"] = [one for one in content["images"] if one["split"] == "val"]
    first = content["images"][0]
    bad = {**first, "filename": "bad.png", "imgid": 999, "cocoid": 999, "sentids": []}
    content["images"].insert(3, bad)
    images = tmp_path / "images"
    images.symlink_to(scenes / "images")
    (tmp_path / "dataset.json").write_text(json.dumps(content))
    return "--data", tmp_path / "dataset.json", "--images", images


def test_predict_goes_on_and_writes_what_one_process_writes(
    trained, data, tmp_path, run_patchword, in_place_of_ray
):
    arguments = ("predict", trained / "best", *data, "--split", "val", "--beam", "1")
    here = run_patchword(*arguments, "--out", tmp_path / "here.json")
    assert here.returncode == 1, here.stderr
    there = (*arguments, "--out", tmp_path / "there.json", *SPREAD, tmp_path / "parts")
    in_place_of_ray["most"] = 2
    assert run_patchword(*there).returncode == 130 and not (tmp_path / "there.json").exists()
    other = run_patchword(*there, "--min-length", "3")
    assert other.returncode == 2 and "holds a job with other settings" in other.stderr
    in_place_of_ray["most"] = 99
    done = run_patchword(*there)
    assert done.returncode == 1 and in_place_of_ray["made"] == 3, done.stderr
    assert "bad.png" in done.stderr and "12 captions, 1 picture could not be read" in done.stdout
    assert not (tmp_path / "parts").exists()
    found = [json.loads((tmp_path / name).read_text()) for name in ("here.json", "there.json")]
    assert found[0] == found[1] and len(found[1]) == 12
    alone = run_patchword(*arguments, "--out", tmp_path / "x.json", "--cluster", "local")
    assert alone.returncode == 2 and "--cluster goes with --parts" in alone.stderr


@pytest.mark.parametrize(
    "options", [("--mirror",), ("--until-layer", "1", "--with-features"), ("--views", "3")]
)
def test_a_store_is_that_of_one_process(options, trained, data, tmp_path, run_patchword, in_place_of_ray):
    arguments = ("features", trained / "best", *data, "--device", "cpu", *options)
    here = run_patchword(*arguments, "--out", tmp_path / "here")
    there = (*arguments, "--out", tmp_path / "there", *SPREAD, tmp_path / "parts")
    in_place_of_ray["most"] = 1
    assert run_patchword(*there).returncode == 130
    in_place_of_ray["most"] = 99
    done = run_patchword(*there)
    assert (here.returncode, done.returncode, in_place_of_ray["made"]) == (1, 1, 3), done.stderr
    assert "bad.png" in done.stderr and not (tmp_path / "parts").exists()
    ours, theirs = Store.open(tmp_path / "there"), Store.open(tmp_path / "here")
    same = [name for name in theirs.manifest if name not in ("digests", "digest", "left_out")]
    assert {name: ours.manifest[name] for name in same} == {name: theirs.manifest[name] for name in same}
    assert list(ours.manifest["left_out"]) == list(theirs.manifest["left_out"]) == ["bad.png"]
    plain = 12 if "--views" in options else len(theirs.manifest["files"])
    for name, values in theirs.fields.items():
        assert values.dtype == ours.fields[name].dtype and values.shape == ours.fields[name].shape
        np.testing.assert_allclose(ours.fields[name][:plain], values[:plain], atol=2e-3, rtol=2e-3)
    if "--views" in options:  # drawn by the pictures' own pixels: others than in one process, and not plain
        name = next(iter(ours.fields))
        views = np.asarray(ours.fields[name], dtype=np.float32).reshape(3, 12, -1)
        assert all(np.abs(views[a] - views[b]).max(1).min() > 1e-3 for a, b in ((0, 1), (0, 2), (1, 2)))


def test_pictures_that_change_meanwhile_are_noticed(
    trained, data, tmp_path, run_patchword, in_place_of_ray, monkeypatch
):
    import patchword.jobs.files as files

    versions = iter(["before", "after"])
    monkeypatch.setattr(files, "_versions", lambda images, names: next(versions))
    arguments = ("features", trained / "best", *data, "--out", tmp_path / "out", *SPREAD, tmp_path / "parts")
    done = run_patchword(*arguments)
    assert done.returncode == 2 and "pictures changed while workers looked at them" in done.stderr
