"""A text in pictures, through the command line: trained on drawn scenes, over the towers of the tests."""

import json

import pytest
from PIL import Image

CONFIG = """
task = "vokens"
out = "{out}"
seed = 2
towers = "{towers}"
[data]
annotations = "{data}/dataset.json"
images = "{data}/images"
cache = "{cache}"
held_out = 6
[model]
kind = "vokenizer"
width = 8
hidden = 16
[[stage]]
epochs = 2
batch = 8
learning_rates = {{ "" = 1e-2 }}
"""


@pytest.fixture(scope="module")
def vokenizer(scenes, towers, tmp_path_factory, run_patchword):
    folder = tmp_path_factory.mktemp("vokens")
    text = CONFIG.format(out=folder / "run", towers=towers, data=scenes, cache=folder / "cache")
    (folder / "run.toml").write_text(text, encoding="utf-8")
    done = run_patchword("train", folder / "run.toml", "--device", "cpu")
    assert done.returncode == 0, done.stderr
    return folder / "run" / "best"


@pytest.fixture
def bank(photos, towers, tmp_path, patchword):
    pytest.importorskip("faiss", reason="an index needs the extra search")
    status, _, err = patchword("index", photos, "--out", tmp_path / "index", "--model", towers)
    assert status in (0, 1), err  # one file of the folder is no picture
    return tmp_path / "index"


def test_each_token_has_a_picture_of_the_bank(vokenizer, bank, photos, patchword, parse, tmp_path):
    (tmp_path / "story.txt").write_text("A red dog, in snow!\n\na cat\n", encoding="utf-8")
    status, out, err = patchword(
        *("vokens", tmp_path / "story.txt", "--bank", bank, "--model", vokenizer),
        *("--html", tmp_path / "page.html", "--out", tmp_path / "v.jsonl"),
    )
    assert not status and not err, err
    rows = [line.split("\t") for line in out.splitlines()]
    assert [row[0] for row in rows] == ["A", "red", "dog", "in", "snow", "a", "cat"]
    assert {row[3] for row in rows} <= {str(photos / "red.png"), str(photos / "bl\u00e5.png")}
    assert all(-1 <= float(row[1]) <= 1 for row in rows)
    page = parse((tmp_path / "page.html").read_text(encoding="utf-8"))
    assert len(page.images) == 7 and "snow" in page.text
    written = [json.loads(line) for line in (tmp_path / "v.jsonl").read_text(encoding="utf-8").splitlines()]
    assert [row["text"] for row in written] == ["A red dog, in snow!", "a cat"]
    assert [written[0]["text"][slice(*one["span"])] for one in written[0]["vokens"]] == [
        "A",
        "red",
        "dog",
        "in",
        "snow",
    ]


def test_the_order_of_texts_and_other_texts_change_no_picture(vokenizer, bank):
    from patchword.tasks.vokens.model import load_vokenizer

    model = load_vokenizer(vokenizer, "cpu")
    pictures = model.bank(bank)
    texts = ["a red dog", "snow", "a picture of the blue ball in snow", "..."]
    found = model.vokens(texts, pictures)
    assert [len(one) for one in found] == [3, 1, 8, 0]
    for text, one in zip(texts, found, strict=True):
        alone = model.vokens([text], pictures)[0]
        assert [(v.token, v.picture) for v in alone] == [(v.token, v.picture) for v in one]
        assert all(abs(a.relevance - b.relevance) < 1e-5 for a, b in zip(alone, one, strict=True))


def test_a_bank_of_other_towers_is_refused(vokenizer, photos, tmp_path, patchword):
    from patchword.search.index import update_index
    from patchword.search.records import IndexModel

    pytest.importorskip("faiss", reason="an index needs the extra search")

    def embed(pictures):
        import numpy as np

        return np.ones((len(pictures), 12), np.float32)

    update_index(photos, tmp_path / "other", IndexModel(embed, "another model"))
    status, _, err = patchword("vokens", "a dog", "--bank", tmp_path / "other", "--model", vokenizer)
    assert status == 2 and "another model" in err
    status, _, err = patchword("vokens", "a dog", "--bank", tmp_path / "none", "--model", vokenizer)
    assert status == 2 and "no index here" in err


def test_bad_texts_and_models_are_said(vokenizer, bank, towers, tmp_path, patchword):
    (tmp_path / "empty.txt").write_text("\n \n")
    status, _, err = patchword("vokens", tmp_path / "empty.txt", "--bank", bank, "--model", vokenizer)
    assert status == 2 and "has no text" in err
    for gone in (tmp_path / "gone.txt", "texts.txt", tmp_path):  # a name of a file is no text
        status, _, err = patchword("vokens", gone, "--bank", bank, "--model", vokenizer)
        assert status == 2 and f"there is no text file {gone}" in err
    status, out, err = patchword(
        "vokens", "a dog " * 300, "--bank", bank, "--model", vokenizer
    )  # no file's name
    assert status == 0 and "are left out" in err
    status, _, err = patchword("vokens", "a dog", "--bank", bank, "--model", towers)
    assert status == 2 and "'vokens' is needed" in err
    empty = tmp_path / "empty"
    empty.mkdir()
    Image.new("RGB", (9, 9)).save(empty / "gone.png")
    patchword("index", empty, "--out", tmp_path / "hollow", "--model", towers)
    (empty / "gone.png").unlink()
    patchword("index", empty, "--out", tmp_path / "hollow", "--model", towers, "--allow-empty")
    status, _, err = patchword("vokens", "a dog", "--bank", tmp_path / "hollow", "--model", vokenizer)
    assert status == 2 and "holds no pictures" in err


def test_towers_that_changed_are_refused(vokenizer, tmp_path):
    import shutil

    from patchword.errors import ModelError
    from patchword.tasks.vokens.model import load_vokenizer

    shutil.copytree(vokenizer, tmp_path / "copy")
    config = json.loads((tmp_path / "copy" / "config.json").read_text())
    config["identity"] = "0" * 64
    (tmp_path / "copy" / "config.json").write_text(json.dumps(config))
    with pytest.raises(ModelError, match="was trained with towers .* of SHA-256 000000000000"):
        load_vokenizer(tmp_path / "copy", "cpu")
