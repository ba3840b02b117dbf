from types import SimpleNamespace

import numpy as np
import pytest
from PIL import Image

from patchword.errors import DataError
from patchword.serve.refusals import Refusal
from patchword.serve.searching import IndexSearch, TowerLabels


class Towers:
    def embed_texts(self, texts):
        if "zzz" in texts[0]:
            raise DataError("'zzz' has no word that the model knows")
        return np.ones((len(texts), 4), np.float32)

    def label(self, pictures, labels):
        self.embed_texts(labels)
        return np.tile(np.arange(1, len(labels) + 1) / 10, (len(pictures), 1))


@pytest.fixture
def index(tmp_path):
    Image.new("RGB", (900, 300), (9, 200, 9)).save(tmp_path / "green.png")
    (tmp_path / "gone.png").write_text("not a picture any more")
    scores = {"green.png": 0.5, "gone.png": 0.25}
    found = [
        SimpleNamespace(path=str(tmp_path / name), score=np.float32(score)) for name, score in scores.items()
    ]
    return SimpleNamespace(search=lambda vector_E, k: found[:k] if vector_E.shape == (4,) else None)


def test_hits_have_names_without_folders_and_small_pictures(index):
    green, gone = IndexSearch(index, Towers()).search("something green", 5)
    assert (green.name, green.score, green.picture.size) == ("green.png", 0.5, (240, 80))
    assert (gone.name, gone.score, gone.picture) == ("gone.png", 0.25, None)


def test_labels_come_best_first():
    assert TowerLabels(Towers()).label(Image.new("RGB", (9, 9)), ["a", "b"]) == [("b", 0.2), ("a", 0.1)]


def test_unknown_words_are_a_refusal_not_an_error(client_for, index, make_png):
    able = Towers()
    client = client_for(index=IndexSearch(index, able), labels=TowerLabels(able))
    for response in (
        client.post("/search", json={"text": "zzz"}),
        client.post("/label?label=zzz", content=make_png()),
    ):
        assert response.status_code == 422
        assert response.json()["error"]["message"] == "'zzz' has no word that the model knows"
    with pytest.raises(Refusal, match="unknown_words"):
        IndexSearch(index, able).search("zzz", 1)
