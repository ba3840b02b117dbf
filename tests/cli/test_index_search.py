import json

import numpy as np
import pytest
from PIL import Image

from patchword.cli.index import make_index
from patchword.cli.search import find, printable
from patchword.errors import DataError, StoreError


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


@pytest.fixture
def made(tmp_path, capsys):
    folder = tmp_path / "photos"
    folder.mkdir()
    for name, colour in (("r.png", "red"), ("b\n<b>.png", "blue")):
        Image.new("RGB", (6, 6), colour).save(folder / name)
    (folder / "bad.jpg").write_bytes(b"no picture")
    assert make_index(folder, tmp_path / "out", Colours(), "colours", as_json=False) == 1
    return folder, tmp_path / "out", capsys.readouterr()


def test_index_says_what_it_did_and_what_it_skipped(made, capsys):
    folder, out, printed = made
    assert f"2 pictures in {out}: 2 added, 0 changed, 0 removed, 0 as before, 1 skipped" in printed.out
    assert f"patchword: skipped {folder}/bad.jpg: " in printed.err and len(printed.out.splitlines()) == 1
    make_index(folder, out, Colours(), "colours", as_json=True)
    result = json.loads(capsys.readouterr().out)
    assert (result["kept"], result["pictures"], result["bad"][0]["path"]) == (3, 2, str(folder / "bad.jpg"))


def test_search_by_words_and_by_picture(made, capsys, tmp_path):
    folder, out, _ = made
    find(out, Colours(), "a blue thing", None, 1, [], as_json=False, as_html=None)
    printed = capsys.readouterr().out
    assert printed.startswith("1.000  ") and "b\\n<b>.png" in printed and len(printed.splitlines()) == 1
    find(out, Colours(), "", folder / "r.png", 5, [], as_json=True, as_html=tmp_path / "page.html")
    results = json.loads(capsys.readouterr().out)["results"]
    assert [one["path"] for one in results] == [str(folder / "r.png"), str(folder / "b\n<b>.png")]
    page = (tmp_path / "page.html").read_text(encoding="utf-8")
    assert page.count("data:image/jpeg;base64,") == 2 and "&lt;b&gt;" in page and "<b>" not in page


def test_a_picture_that_is_gone_is_named_on_the_page(made, tmp_path):
    folder, out, _ = made
    (folder / "r.png").unlink()
    find(out, Colours(), "red", None, 2, [], as_json=True, as_html=tmp_path / "page.html")
    assert (tmp_path / "page.html").read_text(encoding="utf-8").count("data:image/jpeg") == 1


@pytest.mark.parametrize(("query", "like"), [("", None), ("  \n", None), ("red", "r.png")])
def test_an_empty_or_double_query_is_refused(made, query, like):
    folder, out, _ = made
    with pytest.raises(DataError, match="expected either words"):
        find(out, Colours(), query, folder / like if like else None, 3, [], as_json=False, as_html=None)


def test_another_model_is_refused(made):
    other = Colours()
    other.identity = "other colours"
    with pytest.raises(StoreError, match="holds vectors of the model 'colours'"):
        find(made[1], other, "red", None, 3, [], as_json=False, as_html=None)


def test_names_a_terminal_cannot_show_are_escaped():
    assert printable("a b é.png") == "a b é.png"
    assert printable("a\nb") == '"a\\nb"' and printable("\udcff") == '"\\udcff"'
