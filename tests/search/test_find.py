import os

import numpy as np
import pytest
from PIL import Image

from patchword.errors import DataError, StoreError
from patchword.search.find import ReRanking, check_query, find_by_picture, find_by_text
from patchword.search.index import open_index, update_index
from patchword.search.page import printable, result_page
from patchword.search.records import IndexModel


class Colours:
    """In place of a two-tower model: a picture is its mean colour, a text the colours it names."""

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


class Bluest:
    """In place of an alignment model: pictures are ranked by how blue they are, whatever the words."""

    def picture_cache(self, pictures):
        return np.array([picture.getpixel((0, 0))[2] for picture in pictures])

    def text_cache(self, texts):
        return np.ones(len(texts))

    def similarities(self, pictures, texts):
        return pictures[:, None] * texts[None]

    def remarks(self, text):
        return Colours().remarks(text)


@pytest.fixture
def folder(tmp_path):
    folder = tmp_path / "photos"
    folder.mkdir()
    for name, colour in (("r.png", "red"), ("b\n<b>.png", "blue"), ("p.png", "purple")):
        Image.new("RGB", (6, 6), colour).save(folder / name)
    return folder


@pytest.fixture
def opened(folder, tmp_path):
    update_index(folder, tmp_path / "out", IndexModel(Colours().embed_images, "colours"))
    with open_index(tmp_path / "out") as index:
        yield index


def names(found):
    return [os.path.basename(match.path) for match in found.matches]


def test_words_and_a_picture_find_the_nearest(opened, folder):
    assert names(find_by_text(opened, Colours(), "a blue thing", 2)) == ["b\n<b>.png", "p.png"]
    assert names(find_by_picture(opened, Colours(), folder / "r.png", 5)) == ["r.png", "p.png", "b\n<b>.png"]


def test_a_shortlist_is_ranked_again_and_cut(opened):
    found = find_by_text(opened, Colours(), "red", 2, again=ReRanking(Bluest(), 2))
    assert names(found) == ["p.png", "r.png"], "the bluest picture of all was not on the shortlist"
    assert found.unreadable == ()


def test_what_cannot_be_ranked_again_stands_last_with_the_reason(opened, folder):
    (folder / "r.png").unlink()
    found = find_by_text(opened, Colours(), "red", 3, again=ReRanking(Bluest(), 3))
    assert names(found) == ["b\n<b>.png", "p.png", "r.png"]
    assert found.matches[-1].score == float("-inf") and "does not exist" in found.unreadable[0]


@pytest.mark.parametrize("text", ["", "  \n"])
def test_an_empty_query_is_refused(opened, text):
    with pytest.raises(DataError, match="an empty query"):
        find_by_text(opened, Colours(), text)


def test_words_and_a_picture_together_are_refused(folder):
    with pytest.raises(DataError, match="words and a picture"):
        check_query("red", folder / "r.png")


def test_another_model_is_refused(opened, tmp_path):
    with pytest.raises(StoreError, match="holds vectors of the model 'colours'"):
        open_index(tmp_path / "out", "other colours")


def test_the_page_holds_the_pictures_and_names_what_is_gone(opened, folder):
    found = find_by_text(opened, Colours(), "red", 3)
    page = result_page("<red>", found)
    assert page.count("data:image/jpeg;base64,") == 3 and "&lt;b&gt;" in page and "<b>" not in page
    (folder / "r.png").unlink()
    assert result_page("red", found).count("data:image/jpeg;base64,") == 2


def test_names_a_terminal_cannot_show_are_escaped():
    assert printable("a b é.png") == "a b é.png"
    assert printable("a\nb") == '"a\\nb"' and printable("\udcff") == '"\\udcff"'
