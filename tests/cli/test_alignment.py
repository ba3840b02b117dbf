"""Patch-word alignment as it is typed: one pair explained, recall on a split, a search whose shortlist is
ranked again.
"""

import json
import shutil

import pytest
import skimage.data
from PIL import Image

from patchword.tasks.align.model import load_alignment
from patchword.tasks.retrieve.load import load_two_towers

COLOURS = {"red": (255, 0, 0), "blue": (0, 0, 255), "snow": (255, 255, 255), "dog": (90, 60, 30)}


@pytest.fixture(scope="module")
def cat(tmp_path_factory):
    path = tmp_path_factory.mktemp("cat") / "cat <1>.png"
    Image.fromarray(skimage.data.chelsea()).save(path)
    return path


@pytest.fixture(scope="module")
def split(tmp_path_factory):
    """Four pictures with two captions each; the file names are ids of COCO."""
    folder = tmp_path_factory.mktemp("split")
    rows = ["image,caption,split"]
    for name, colour in COLOURS.items():
        Image.new("RGB", (20, 20), colour).save(folder / f"{name}.png")
        rows += [f"{name}.png,{caption},val" for caption in (f"a {name} ball", f"the {name} in a glass")]
    (folder / "data.csv").write_text("\n".join(rows))
    return folder


def test_a_pair_is_scored_and_explained_word_by_word(patchword, aligner, cat, tmp_path):
    words = ("pair", cat, "a cat in snow", "--model", aligner, "--device", "cpu")
    status, out, _ = patchword(*words, "--explain", tmp_path / "page.html")
    assert status == 0 and out.startswith("similarity ") and "8 of 16 patches kept" in out
    assert [line.split("  ")[-1].split(":")[0] for line in out.splitlines()[1:]] == [
        "(start)",
        "a",
        "cat",
        "in",
        "snow",
        "(end)",
    ]
    page = (tmp_path / "page.html").read_text(encoding="utf-8")
    assert "cat &lt;1&gt;.png" in page and "<script" not in page and page.count('class="best"') == 6
    # The picture once, as a background; a map each of scores, kept, merged, dropped, three tokens and six
    # words.
    assert page.count("data:image/jpeg") == 1 and page.count("data:image/png") == 4 + 3 + 6
    status, out, _ = patchword(*words, "--explain", tmp_path / "figure.png", "--json")
    found = json.loads(out)
    assert status == 0 and sum(map(sum, found["kept"])) == 8 and len(found["words"]) == 6
    with Image.open(tmp_path / "figure.png") as figure:
        assert figure.width > 1000
    # The page tells of the same numbers as the model: similarity of all pairs, of one picture and one text.
    model = load_alignment(aligner, "cpu")
    alone = model.similarities(model.picture_cache([cat]), model.text_cache(["a cat in snow"]))
    assert found["similarity"] == pytest.approx(float(alone[0, 0]), abs=2e-3)


def test_a_page_of_a_pair_shows_what_the_model_saw(patchword, aligner, middle_only, tmp_path):
    cut, page = middle_only(aligner), tmp_path / "page.html"
    status, _, err = patchword("pair", cut.picture, "a cat in snow", "--model", cut.folder, "--explain", page)
    assert status == 0 and cut.shown(page) == [0.0], err


def test_the_shipped_model_explains_a_pair_offline(patchword, cat):
    status, out, _ = patchword("pair", cat, "a cat looks up", "--json")
    found = json.loads(out)
    assert status == 0 and [one["word"] for one in found["words"]] == [
        "(start)",
        "a",
        "cat",
        "looks",
        "up",
        "(end)",
    ]
    assert -0.2 < found["similarity"] < 2 and len(found["kept"]) == 6


def test_gifts_of_patches_make_up_a_word(aligner, cat):
    """What each patch gives, times the patch's weight, is the cosine: the frame marks the largest gift, and
    shares sum to one.
    """
    pair = load_alignment(aligner, "cpu").explain(cat, "a cat in snow")
    for word in pair.words:
        assert word.gifts_hw[word.patch] == word.gifts_hw.max()
        assert word.gifts_hw.sum() == pytest.approx(1, abs=1e-4) or word.cosine <= 0
        in_token = pair.weights_Phw[word.token] > 0
        assert not word.gifts_hw[~in_token].any()
    assert not pair.weights_Phw[pair.fused][pair.kept_hw].any()
    assert not pair.weights_Phw[list(pair.merged)][:, ~pair.kept_hw].any()


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["a cat", "--explain", "page.txt"], "let it end in .html"),
        (["qwertz"], "has no word that the model knows"),
        (["a cat", "--model", "TOWERS"], "is a model for 'retrieve'"),
    ],
)
def test_a_pair_that_cannot_be_explained(patchword, aligner, towers, cat, words, message):
    words = [towers if word == "TOWERS" else word for word in words]
    model = [] if "--model" in words else ["--model", aligner]
    status, out, err = patchword("pair", cat, *words, *model, "--device", "cpu")
    assert status == 2 and out == "" and message in err and len(err.splitlines()) == 1


def test_recall_of_towers_of_alignment_and_of_two_stages(patchword, towers, aligner, split, tmp_path):
    data = ("--data", split / "data.csv", "--images", split, "--device", "cpu", "--json")
    by_towers = json.loads(patchword("recall", towers, *data)[1])
    assert (by_towers["pictures"], by_towers["captions"], by_towers["compared"]) == (4, 8, 32)
    assert (
        by_towers["scores"]["i2t_R@10"] == by_towers["scores"]["t2i_R@5"] == 100
    )  # four pictures, eight captions
    by_words = json.loads(patchword("recall", aligner, *data, "--resamples", 20)[1])
    low, high = by_words["intervals"]["rSum"]
    assert low <= by_words["scores"]["rSum"] <= high
    # A shortlist of everything is the ranking of all pairs; one of a single candidate is that of the towers.
    everything = json.loads(
        patchword("recall", aligner, *data, "--shortlist", 8, "--out", tmp_path / "found.json")[1]
    )
    assert everything["scores"] == by_words["scores"] and everything["lost"] == {"i2t": 0, "t2i": 0}
    assert json.loads((tmp_path / "found.json").read_text())["scores"] == everything["scores"]
    one = json.loads(patchword("recall", aligner, *data, "--shortlist", 1, "--first", towers)[1])
    assert one["first_stage"] == by_towers["scores"]
    for way in ("i2t", "t2i"):
        assert (
            one["scores"][f"{way}_R@1"]
            == by_towers["scores"][f"{way}_R@1"]
            == pytest.approx(100 - one["lost"][way])
        )


def test_recall_prints_a_table(patchword, aligner, split):
    status, out, _ = patchword(
        "recall",
        aligner,
        "--data",
        split / "data.csv",
        "--images",
        split,
        "--shortlist",
        3,
        "--device",
        "cpu",
    )
    assert (
        status == 0
        and "rSum" in out
        and "lost by the shortlist, beyond recovery: " in out
        and "peak memory" in out
    )


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--protocol", "coco-5k"], "has 4 pictures, expected a multiple of 1000"),
        (["--first", "two-towers"], "say how long with --shortlist N"),
        (["--shortlist", "5"], "has no alignment head to rank a shortlist with"),
    ],
)
def test_recall_that_cannot_be_measured(patchword, towers, split, words, message):
    status, out, err = patchword("recall", towers, "--data", split / "data.csv", "--images", split, *words)
    assert status == 2 and out == "" and message in err.splitlines()[-1]


def test_a_search_is_ranked_again_by_alignment(patchword, towers, aligner, photos, split, tmp_path):
    for name in COLOURS:
        shutil.copy(split / f"{name}.png", photos / f"{name}2.png")
    assert patchword("index", photos, "--out", tmp_path / "out", "--model", towers)[0] == 1  # broken.jpg
    status, out, _ = patchword(
        "search", tmp_path / "out", "a red ball", "--rerank", aligner, "-k", 3, "--json"
    )
    found = json.loads(out)["results"]
    assert status == 0 and len(found) == 3
    model = load_alignment(aligner)
    paths = sorted(path for path in photos.iterdir() if path.suffix == ".png")
    exact = model.similarities(model.picture_cache(paths), model.text_cache(["a red ball"]))[:, 0]
    best = sorted(zip(exact.tolist(), map(str, paths), strict=True), reverse=True)[:3]
    assert [one["score"] for one in found] == pytest.approx([score for score, _ in best], abs=1e-4)
    # A picture that is gone is named and stands last; a query by picture has no words to align.
    (photos / "snow2.png").unlink()
    status, out, err = patchword("search", tmp_path / "out", "a red ball", "--rerank", aligner, "--json")
    results = json.loads(out)["results"]
    assert (
        status == 0
        and results[-1] == {"path": str(photos / "snow2.png"), "score": None, "exists": False}
        and "snow2.png" in err
    )
    status, _, err = patchword("search", tmp_path / "out", "--like", photos / "red.png", "--rerank", aligner)
    assert status == 2 and "give words, or leave --rerank out" in err


def test_towers_of_an_alignment_model_search_too(towers, aligner, photos):
    """The folder of an alignment model is a two-tower model as well, with the same vectors."""
    ours, theirs = load_two_towers(aligner, "cpu"), load_two_towers(towers, "cpu")
    assert ours.identity == theirs.identity
    assert (ours.embed_images([photos / "red.png"]) == theirs.embed_images([photos / "red.png"])).all()


def test_concepts_of_patches_filter_a_search(patchword, towers, photos, tmp_path):
    (tmp_path / "words.txt").write_text("dog\nsnow\nred\nblue\n")
    assert (
        patchword(
            "codebook",
            tmp_path / "words.txt",
            "--tower",
            towers,
            "--out",
            tmp_path / "book",
            "--device",
            "cpu",
        )[0]
        == 0
    )
    words = ("index", photos, "--out", tmp_path / "out", "--model", towers)
    assert patchword(*words, "--concepts", tmp_path / "book")[0] == 1
    counted = {}
    for concept in ("dog", "snow", "red", "blue"):
        _, out, _ = patchword("search", tmp_path / "out", "a ball", "--concept", concept, "--json")
        counted[concept] = len(json.loads(out)["results"])
    assert (
        sum(counted.values()) >= 2
    )  # both pictures have at least one concept: 16 patches, four words, a tenth suffices
    _, out, _ = patchword("search", tmp_path / "out", "--concept", "snow", "--json")
    found = json.loads(out)
    assert len(found["results"]) == counted["snow"] and found["query"] == "snow"
    status, _, err = patchword("search", tmp_path / "out", "a ball", "--concept", "fish")
    assert status == 2 and "knows no concept 'fish': it has 4, such as blue, dog, red, snow" in err
    status, _, err = patchword(*words)
    assert status == 2 and "index with the codebook that it was begun with" in err


def test_kind_11_a_pair_says_which_words_the_model_does_not_know(patchword, aligner, cat):
    status, _, err = patchword("pair", cat, "a zebra in snow", "--model", aligner, "--device", "cpu")
    assert status == 0 and "the model does not know: zebra" in err
