import os
import shutil

import numpy as np
import pytest
from PIL import Image

from patchword.errors import DataError
from patchword.html.pictures import opened
from patchword.search.index import open_index, update_index
from patchword.search.records import IndexModel
from patchword.serve.refusals import Refusal
from patchword.serve.searching import IndexSearch, TowerLabels


class Towers:
    """Texts name colours; pictures are their mean colour."""

    def embed_texts(self, texts):
        if "zzz" in texts[0]:
            raise DataError("'zzz' has no word that the model knows")
        return np.array([[text.count(name) + 0.01 for name in ("red", "green", "blue")] for text in texts])

    def remarks(self, text):
        return ["the model does not know: zebra"] if "zebra" in text else []

    def label(self, pictures, labels):
        self.embed_texts(labels)
        return np.tile(np.arange(1, len(labels) + 1) / 10, (len(pictures), 1))


def embed(pictures):
    """The mean colour."""
    return np.stack(
        [np.asarray(picture.resize((1, 1)), dtype=np.float32).reshape(3) + 1 for picture in pictures]
    )


@pytest.fixture
def photos(tmp_path):
    folder = tmp_path / "photos"
    folder.mkdir()
    Image.new("RGB", (900, 300), (9, 200, 9)).save(folder / "green.png")
    Image.new("RGB", (90, 30), (200, 9, 9)).save(folder / "red.png")
    return folder


@pytest.fixture
def searched(photos, tmp_path):
    """The finder, and the folder of its index."""
    update_index(photos, tmp_path / "out", IndexModel(embed, "colours"))
    return IndexSearch(open_index(tmp_path / "out"), Towers()), tmp_path / "out"


def found(finder, text, k=5):
    return finder.nearest(finder.read([text])[0], k)


def test_hits_have_names_without_folders_and_small_copies(searched):
    finder, _ = searched
    green, red = found(finder, "something green")
    assert (green.name, red.name) == ("green.png", "red.png") and green.score > red.score
    with opened(finder.thumbnail(green.key)) as copy:
        assert copy.size == (240, 80)


def test_no_original_is_opened_for_what_is_shown(searched, photos, monkeypatch):
    finder, _ = searched
    hits = found(finder, "green")
    shutil.rmtree(photos)
    monkeypatch.setattr(finder, "_reader", None)
    assert all(finder.thumbnail(hit.key) for hit in hits)


def test_a_copy_that_is_missing_is_made_from_the_original_and_kept(searched, photos):
    finder, out = searched
    shutil.rmtree(out / "thumbnails")
    hits = found(finder, "green")
    assert finder.thumbnail(hits[0].key)[:2] == b"\xff\xd8"
    (photos / "green.png").unlink()
    assert finder.thumbnail(hits[0].key) is not None
    Image.new("RGB", (9, 9), "blue").save(photos / "red.png")
    assert finder.thumbnail(hits[1].key) is None, "the file is another picture now"


def test_a_copy_cut_short_is_made_anew(searched):
    finder, out = searched
    key = found(finder, "green")[0].key
    path = out / "thumbnails" / key[:2] / key
    path.write_bytes(path.read_bytes()[:-9])
    with opened(finder.thumbnail(key)) as copy:
        assert copy.size == (240, 80)


def test_what_was_never_found_has_no_copy(searched):
    finder, out = searched
    shutil.rmtree(out / "thumbnails")
    assert finder.thumbnail("0" * 64) is None


def test_an_update_of_the_index_is_followed(searched, photos):
    finder, out = searched
    found(finder, "green")
    Image.new("RGB", (9, 9), (9, 9, 250)).save(photos / "blue.png")
    update_index(photos, out, IndexModel(embed, "colours"))
    assert found(finder, "blue", 1)[0].name == "blue.png"
    (out / "index.json").write_text("{")
    assert found(finder, "blue", 1)[0].name == "blue.png", "what was open still answers"


def test_remarks_go_with_the_query(searched):
    one, other = searched[0].read(["a zebra", "red"])
    assert (one.remarks, other.remarks) == (("the model does not know: zebra",), ())


def test_names_that_are_no_text_are_sent(client_for, photos, tmp_path):
    try:
        (photos / "red.png").rename(photos / os.fsdecode(b"\xff.png"))
    except OSError:
        pytest.skip("this file system takes UTF-8 names only")
    update_index(photos, tmp_path / "out", IndexModel(embed, "colours"))
    client = client_for(index=IndexSearch(open_index(tmp_path / "out"), Towers()))
    hits = client.post("/search", json={"text": "red"}).json()["hits"]
    assert hits[0]["name"] == "\ufffd.png" and client.get(hits[0]["picture"]).status_code == 200


def test_labels_come_best_first():
    assert TowerLabels(Towers()).label(Image.new("RGB", (9, 9)), ["a", "b"]) == [("b", 0.2), ("a", 0.1)]


def test_unknown_words_are_a_refusal_not_an_error(client_for, searched, make_png):
    client = client_for(index=searched[0], labels=TowerLabels(Towers()))
    for response in (
        client.post("/search", json={"text": "zzz"}),
        client.post("/label?label=zzz", content=make_png()),
    ):
        assert response.status_code == 422
        assert response.json()["error"]["message"] == "'zzz' has no word that the model knows"
    with pytest.raises(Refusal, match="unknown_words"):
        searched[0].read(["zzz"])
