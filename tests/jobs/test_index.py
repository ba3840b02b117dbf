"""An index whose vectors were made elsewhere is the one that this process would have made."""

import os

import numpy as np
import pytest
from PIL import Image

import patchword.jobs.index as index_file
from patchword.errors import ConfigError
from patchword.jobs import cluster, sources
from patchword.jobs.index import index_on_cluster
from patchword.jobs.part import do_part
from patchword.search.index import open_index, update_index
from patchword.search.records import IndexModel


def embed(pictures):
    """The mean colour."""
    return np.stack(
        [np.asarray(picture.resize((1, 1)), dtype=np.float32).reshape(3) + 1 for picture in pictures]
    )


def never(pictures):
    raise AssertionError("the vectors are there")


def work(pictures, names):
    return [{"vector": vector_E.tolist()} for vector_E in embed(pictures)]


@pytest.fixture
def photos(tmp_path):
    folder = tmp_path / "photos"
    folder.mkdir()
    for number in range(9):
        Image.new("RGB", (8, 8), (25 * number, 200 - 20 * number, 40)).save(folder / f"{number}.png")
    (folder / "bad.jpg").write_bytes(b"\xff\xd8\xff no picture")
    return folder


@pytest.fixture
def here(monkeypatch):
    """In place of Ray: this process; counts parts, and ends after as many as it is told."""
    state = {"made": 0, "most": 99}

    def on_ray(job, parts, pending, address, workers):
        for number in pending:
            if state["made"] == state["most"]:
                raise KeyboardInterrupt
            state["made"] += 1
            yield do_part(job, number, parts[number], work)

    monkeypatch.setattr(sources, "PART", 4)
    monkeypatch.setattr(cluster, "_on_ray", on_ray)
    return state


def run(photos, out, parts, embed=never):
    return index_on_cluster(
        photos, str(out), parts, IndexModel(embed, "colours", "towers"), "local", lambda *said: None
    )


def found(out):
    with open_index(out, "colours") as opened:
        return [(os.path.basename(one.path), round(one.score, 5)) for one in opened.search(np.ones(3), 99)]


def test_the_index_is_that_of_one_process_and_goes_on_when_killed(photos, tmp_path, here):
    out, parts = tmp_path / "out", tmp_path / "parts"
    here["most"] = 1
    with pytest.raises(KeyboardInterrupt):
        run(photos, out, parts)
    here["most"] = 99
    report = run(photos, out, parts)
    assert (report.added, report.pictures, here["made"]) == (9, 9, 3) and not parts.exists()
    assert [os.path.basename(path) for path, _ in report.bad] == ["bad.jpg"]
    update_index(photos, tmp_path / "plain", IndexModel(embed, "colours"))
    assert found(out) == found(tmp_path / "plain")

    Image.new("RGB", (8, 8), (9, 9, 250)).save(photos / "new.png")
    os.rename(photos / "3.png", photos / "moved.png")
    report = run(photos, out, parts)
    assert (report.added, report.moved, report.kept, here["made"]) == (1, 1, 9, 4)
    report = run(photos, out, parts)
    assert (report.added, report.kept, here["made"]) == (0, 11, 4)


def test_what_changes_while_workers_embed_is_embedded_here(photos, tmp_path, here, monkeypatch):
    real = index_file.run_job

    def slow(*arguments):
        real(*arguments)
        Image.new("RGB", (8, 8), (250, 250, 250)).save(photos / "0.png")

    monkeypatch.setattr(index_file, "run_job", slow)
    run(photos, tmp_path / "out", tmp_path / "parts", embed)
    update_index(photos, tmp_path / "plain", IndexModel(embed, "colours"))
    assert found(tmp_path / "out") == found(tmp_path / "plain")


def test_a_folder_of_something_else_is_not_emptied(photos, tmp_path, here):
    with pytest.raises(ConfigError, match="is a folder of something else"):
        run(photos, tmp_path / "out", photos)
    assert len(os.listdir(photos)) == 10
