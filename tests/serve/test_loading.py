import pytest
from PIL import Image

from patchword.errors import ConfigError
from patchword.serve.loading import load_all

CAPTIONER, TOWERS = "flickr8k", "two-towers"


def offered(names, index=None):
    return load_all(names, index, CAPTIONER, TOWERS, "cpu")


def test_what_is_not_named_is_what_ships():
    offer = offered([])
    assert list(offer.models) == [CAPTIONER] and offer.index is None and offer.answers is None
    assert [label for label, _ in offer.labels.label(Image.new("RGB", (50, 50)), ["a dog", "a man"])]


def test_each_model_does_what_it_was_trained_for():
    assert list(offered([TOWERS]).models) == [CAPTIONER]
    with pytest.raises(ConfigError, match="two of the models have the name 'flickr8k': rename a folder"):
        offered([CAPTIONER, CAPTIONER])
    with pytest.raises(ConfigError, match="2 two-tower models were named"):
        offered([TOWERS, TOWERS])


def test_an_index_is_searched_by_the_towers_that_made_it(tmp_path):
    pytest.importorskip("faiss", reason="the index is an extra")
    from patchword.cli.index import index

    (tmp_path / "photos").mkdir()
    for name in ("red", "blue"):
        Image.new("RGB", (40, 30), name).save(tmp_path / "photos" / f"{name}.png")
    index(tmp_path / "photos", out=tmp_path / "index")
    offer = offered([], tmp_path / "index")
    assert {hit.name for hit in offer.index.search("a dog", 5)} == {"red.png", "blue.png"}
