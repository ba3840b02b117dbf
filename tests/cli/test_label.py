import json

import numpy as np
import pytest

from patchword.tasks.retrieve.load import load_two_towers
from patchword.tasks.retrieve.model import TEMPLATES


def test_labels_best_first_and_a_broken_picture_named(patchword, towers, photos):
    status, out, err = patchword(
        "label", photos, "--labels", "a dog, a cat,red ball", "--model", towers, "--device", "cpu"
    )
    assert status == 1 and len(err.splitlines()) == 1 and "broken.jpg" in err
    rows = [line.split("\t") for line in out.splitlines()]
    assert [row[0] for row in rows] == [str(photos / "bl\u00e5.png"), str(photos / "red.png")]
    shares = [float(cell.rsplit(" ", 1)[1]) for cell in rows[0][1:]]
    assert {cell.rsplit(" ", 1)[0] for cell in rows[0][1:]} == {"a dog", "a cat", "red ball"}
    assert shares == sorted(shares, reverse=True) and sum(shares) == pytest.approx(1, abs=2e-3)


def test_json_holds_the_same(patchword, towers, photos):
    status, out, _ = patchword(
        "label", photos / "red.png", "--labels", "dog,cat", "--model", towers, "--json"
    )
    row = json.loads(out)
    assert status == 0 and row["image"] == str(photos / "red.png")
    assert sum(one["probability"] for one in row["labels"]) == pytest.approx(1)
    assert row["labels"][0]["probability"] >= row["labels"][1]["probability"]


def test_the_label_nearest_to_the_picture_wins(patchword, towers, photos):
    """Labels are ranked by the cosine of picture and prompts, whatever the order in which they are given."""
    names = ["dog", "cat", "red ball", "wine glass", "snow"]
    model = load_two_towers(towers, "cpu")
    prompts = [model.embed_texts([prompt.format(name) for prompt in TEMPLATES]).sum(0) for name in names]
    texts = np.stack([prompt / np.linalg.norm(prompt) for prompt in prompts])
    for photo in (photos / "red.png", photos / "bl\u00e5.png"):
        cosines = (model.embed_images([photo]) @ texts.T)[0]
        expected = [names[row] for row in cosines.argsort()[::-1]]
        for given in (names, names[::-1]):
            _, out, _ = patchword("label", photo, "--labels", ",".join(given), "--model", towers, "--json")
            assert [one["label"] for one in json.loads(out)["labels"]] == expected


@pytest.mark.parametrize(
    ("labels", "message"),
    [
        ("dog", "names 1 label; expected two or more"),
        (" , ", "names 0 label"),
        ("dog, qwertz", "has no word that the model knows"),
    ],
)
def test_labels_that_cannot_be_used(patchword, towers, photos, labels, message):
    status, out, err = patchword("label", photos / "red.png", "--labels", labels, "--model", towers)
    assert status == 2 and out == "" and message in err.splitlines()[-1]


def test_kind_11_labels_say_which_words_the_model_does_not_know(patchword, towers, photos):
    (photos / "broken.jpg").unlink()
    status, _, err = patchword("label", photos, "--labels", "a zebra, a dog, snow", "--model", towers)
    assert status == 0 and err == "patchword: the model does not know: zebra\n"
    status, _, err = patchword("label", photos, "--labels", "a dog, a cat", "--model", towers)
    assert (status, err) == (0, "")


def test_kind_11_a_label_that_is_cut_says_so(patchword, towers, photos):
    (photos / "broken.jpg").unlink()
    status, _, err = patchword("label", photos, "--labels", "dog, " + "red ball " * 20, "--model", towers)
    assert status == 0 and "the text has 40 words" in err and "are left out" in err
