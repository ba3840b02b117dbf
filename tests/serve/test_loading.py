import pytest
from PIL import Image

from patchword.errors import ConfigError
from patchword.serve.loading import ShippedNames, load_all

CAPTIONER, TOWERS, ANSWERER = "flickr8k", "two-towers", "easy-vqa"


def offered(names, index=None):
    return load_all(names, index, ShippedNames(CAPTIONER, TOWERS, ANSWERER), "cpu")


def test_what_is_not_named_is_what_ships():
    offer = offered([])
    assert list(offer.models) == [CAPTIONER] and offer.pictures is None
    assert offer.answers.facts.name == ANSWERER
    assert [label for label, _ in offer.labels.label(Image.new("RGB", (50, 50)), ["a dog", "a man"])]


def test_each_model_does_what_it_was_trained_for():
    assert list(offered([TOWERS]).models) == [CAPTIONER]
    with pytest.raises(ConfigError, match="two of the models have the name 'flickr8k': rename a folder"):
        offered([CAPTIONER, CAPTIONER])
    for name, kind in ((TOWERS, "two-tower"), (ANSWERER, "question-answering")):
        with pytest.raises(ConfigError, match=f"2 {kind} models were named"):
            offered([name, name])


def test_an_index_is_searched_by_the_towers_that_made_it(tmp_path):
    pytest.importorskip("faiss", reason="the index is an extra")
    from patchword.cli.index import index

    (tmp_path / "photos").mkdir()
    for name in ("red", "blue"):
        Image.new("RGB", (40, 30), name).save(tmp_path / "photos" / f"{name}.png")
    index(tmp_path / "index", tmp_path / "photos")
    offer = offered([], tmp_path / "index")
    hits = offer.pictures.nearest(offer.pictures.read(["a dog"])[0], 5)
    assert {hit.name for hit in hits} == {"red.png", "blue.png"}
