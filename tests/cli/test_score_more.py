import json

import numpy as np
import pytest
from PIL import Image

from patchword.text.words import plural


@pytest.fixture
def colours(tmp_path):
    """Two pictures, their references and two files of predictions."""
    folder = tmp_path / "pictures"
    folder.mkdir()
    Image.new("RGB", (20, 20), "red").save(folder / "first.png")
    Image.new("RGB", (20, 20), "blue").save(folder / "second.png")
    rows = [(7, "a red ball"), (7, "the ball in snow"), (9, "a blue cat"), (9, "a dog")]
    write(
        tmp_path / "references.json",
        {
            "images": [{"id": 7, "file_name": "first.png"}, {"id": 9, "file_name": "second.png"}],
            "annotations": [{"image_id": image, "caption": caption} for image, caption in rows],
        },
    )
    write(
        tmp_path / "one.json",
        [{"image_id": 7, "caption": "a red ball"}, {"image_id": 9, "caption": "two cats and a wine glass"}],
    )
    return tmp_path


def write(path, content):
    path.write_text(json.dumps(content), encoding="utf-8")
    return path


def corpus(path):
    return json.loads(path.read_text(encoding="utf-8"))["corpus"]


def test_clip_score_is_that_of_the_model_given(patchword, colours, towers):
    out = colours / "scores.json"
    words = [
        "--metrics",
        "bleu",
        "--clip-model",
        towers,
        "--images",
        colours / "pictures",
        "--per-image",
        "--out",
        out,
        "--intervals",
    ]
    code, shown, _ = patchword("score", colours / "one.json", colours / "references.json", *words)
    assert code == 0 and f"CLIPScore of {towers}: comparable with that of the same towers only" in shown
    assert "RefCLIPScore" in shown.split("Bootstrap")[1]
    content = json.loads(out.read_text(encoding="utf-8"))
    from patchword.tasks.retrieve.load import load_two_towers

    model = load_two_towers(towers)
    picture, caption = (
        model.embed_images([colours / "pictures" / "first.png"])[0],
        model.embed_texts(["A photo depicts a red ball"])[0],
    )
    own = 2.5 * max(0.0, float(np.dot(picture, caption)))
    assert content["per_image"]["7"]["CLIPScore"] == pytest.approx(own, abs=1e-6)
    # A reference is the caption itself, cosine 1.
    assert content["per_image"]["7"]["RefCLIPScore"] == pytest.approx(2 * own / (own + 1), abs=1e-6)
    assert content["settings"]["clip_model"] == str(towers)


def test_pictures_are_found_by_their_id_too(patchword, colours, towers):
    for old, new in (("first", "7"), ("second", "9")):
        (colours / "pictures" / f"{old}.png").rename(colours / "pictures" / f"{new}.png")
    words = [colours / "one.json", colours / "references.json", "--metrics", "bleu", "--clip-model", towers]
    assert patchword("score", *words, "--images", colours / "pictures")[0] == 0
    (colours / "pictures" / "9.png").unlink()
    code, _, error = patchword("score", *words, "--images", colours / "pictures")
    assert code != 0 and "1 image has no picture there, the first is 9 (looked for second.png)" in error


def test_chair_by_hand(patchword, colours):
    instances = {
        "images": [{"id": 7}, {"id": 9}],
        "annotations": [{"image_id": 7, "category_id": 1}],
        "categories": [{"id": 1, "name": "ball"}, {"id": 2, "name": "cat"}, {"id": 3, "name": "wine glass"}],
    }
    objects, out = write(colours / "instances.json", instances), colours / "scores.json"
    words = [
        colours / "one.json",
        colours / "references.json",
        "--metrics",
        "bleu",
        "--out",
        out,
        "--objects",
        objects,
        "--overwrite",
    ]
    (colours / "synonyms.txt").write_text("ball\ncat, kitten\nwine glass, goblet\n", encoding="utf-8")
    assert patchword("score", *words, "--synonyms", colours / "synonyms.txt")[0] == 0
    # Named: ball, cats, wine glass. A reference names the cat, nothing the glass.
    assert corpus(out)["CHAIRs"] == pytest.approx(1 / 2) and corpus(out)["CHAIRi"] == pytest.approx(1 / 3)
    objects.write_text('{"7": [], "9": ["cat", "wine glass"]}', encoding="utf-8")
    assert patchword("score", *words)[0] == 0
    assert corpus(out)["CHAIRs"] == 0.0
    objects.write_text('{"7": []}', encoding="utf-8")
    assert "image 9 has no object annotations" in patchword("score", *words)[2]
    objects.write_text("[]", encoding="utf-8")
    assert "expected COCO instances (images, annotations, categories)" in patchword("score", *words)[2]
    (colours / "synonyms.txt").write_text("cat, pet\ndog, pet\n", encoding="utf-8")
    objects.write_text('{"7": [], "9": []}', encoding="utf-8")
    assert (
        "line 2: 'pet' names both 'cat' and 'dog'"
        in patchword("score", *words, "--synonyms", colours / "synonyms.txt")[2]
    )


def test_less_is_better_in_chair(patchword, colours, monkeypatch):
    folder = colours / "runs"
    folder.mkdir()
    (colours / "one.json").rename(folder / "one.json")
    write(folder / "two.json", [{"image_id": 7, "caption": "a ball"}, {"image_id": 9, "caption": "a cat"}])
    objects = write(colours / "objects.json", {"7": ["ball"], "9": ["wine glass"]})
    monkeypatch.setenv("FORCE_COLOR", "1")
    lines = patchword(
        "score", folder, colours / "references.json", "--metrics", "bleu", "--objects", objects
    )[1].splitlines()
    rows = {name: next(line for line in lines if name in line) for name in ("one", "two")}
    assert "0.00" in rows["two"] and "0.00" in rows["one"]
    write(objects, {"7": ["ball"], "9": ["wine glass", "boat"]})
    write(folder / "one.json", [{"image_id": 7, "caption": "a ball"}, {"image_id": 9, "caption": "a boat"}])
    write(folder / "two.json", [{"image_id": 7, "caption": "a boat"}, {"image_id": 9, "caption": "a boat"}])
    lines = patchword(
        "score", folder, colours / "references.json", "--metrics", "bleu", "--objects", objects
    )[1].splitlines()
    assert "\x1b[1m" in next(line for line in lines if "one" in line) and "50.00" in next(
        line for line in lines if "two" in line
    )


def test_domains_are_sets_of_their_own(patchword, colours):
    domains = write(
        colours / "nocaps.json",
        {"images": [{"id": 7, "domain": "in-domain"}, {"id": 9, "domain": "out-domain"}]},
    )
    out = colours / "scores.json"
    words = [
        colours / "one.json",
        colours / "references.json",
        "--metrics",
        "rouge,cider",
        "--out",
        out,
        "--groups",
        domains,
        "--overwrite",
    ]
    code, shown, _ = patchword("score", *words)
    assert code == 0 and "one in-domain" in shown and "near-domain" not in shown
    rows = {name: content["corpus"] for name, content in json.loads(out.read_text(encoding="utf-8")).items()}
    assert list(rows) == ["one in-domain", "one out-domain", "one entire"]
    assert (
        rows["one in-domain"]["ROUGE_L"] == pytest.approx(1.0)
        and rows["one in-domain"]["CIDEr"] == 0.0 < rows["one entire"]["CIDEr"]
    )
    mean = (rows["one in-domain"]["ROUGE_L"] + rows["one out-domain"]["ROUGE_L"]) / 2
    assert rows["one entire"]["ROUGE_L"] == pytest.approx(mean)
    write(domains, {"images": [{"id": 7, "domain": "in-domain"}]})
    assert "image 9 has the domain None" in patchword("score", *words)[2]
    write(domains, [])
    assert "expected a nocaps captions file" in patchword("score", *words)[2]


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--clip-model", "two-towers"], "give both --clip-model and --images, or neither"),
        (["--images", "pictures"], "give both --clip-model and --images, or neither"),
        (["--synonyms", "s.txt"], "name them with --objects"),
        (
            ["--groups", "g.json", "--compare", "p.json"],
            "--groups gives several rows and --compare takes one on each side",
        ),
    ],
)
def test_options_that_belong_together(patchword, colours, words, message):
    code, _, error = patchword("score", colours / "one.json", colours / "references.json", *words)
    assert code != 0 and message in error


@pytest.mark.parametrize(
    ("word", "expected"),
    [("dog", "dogs"), ("bus", "buses"), ("pony", "ponies"), ("toy", "toys"), ("wine glass", "wine glasses"), ("fireman", "firemen"),
     ("human", "humans"), ("knife", "knives"), ("sheep", "sheep")],
)  # fmt: skip
def test_plurals(word, expected):
    assert plural(word) == expected
