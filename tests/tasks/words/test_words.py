"""Word vectors through the command line: every kind trained on drawn scenes, looked around in, evaluated, exported."""

import dataclasses
import json
import math

import numpy as np
import pytest

CONFIG = """
task = "words"
out = "{out}"
seed = 3
checkpoint_steps = 1
log_steps = 1
words_per_batch = 256
[corpus]
captions = "{data}/dataset.json"
minimum_count = 2
[counts]
window = 3
contexts = 40
width = 8
[pictures]
annotations = "{data}/dataset.json"
images = "{data}/images"
cache = "{cache}"
minimum = 2
width = 8
[pictures.tower]
kind = "convolutional"
stem = 8
widths = [8, 16]
blocks = [0, 0]
size = 16
[model]
"""
STAGE = '[[stage]]\nepochs = 2\nbatch = 8\nlearning_rates = { "" = 0.05 }\n'
KINDS = {
    "distributional": 'kind = "distributional"\n',
    "A": 'kind = "skip_gram"\nvariant = "A"\nwidth = 8\n' + STAGE,
    "B": 'kind = "skip_gram"\nvariant = "B"\nwidth = 10\n' + STAGE,
    "autoencoder": 'kind = "autoencoder"\ntext = [8, 6]\npictures = [8, 6]\nwidth = 7\n'
    + 2 * STAGE.replace("0.05", "0.005"),
    "grounded_space": 'kind = "grounded_space"\nword_width = 8\nwidth = 12\ngrounded_width = 6\n'
    + STAGE.replace("0.05", "0.005"),
}


@pytest.fixture(scope="module")
def words(scenes, tmp_path_factory):
    """Trains a kind once; gives its folder of vectors."""
    from patchword.tasks.words.train import train_words

    place, made = tmp_path_factory.mktemp("words"), {}

    def get(kind):
        if kind not in made:
            path = place / f"{kind}.toml"
            text = CONFIG.format(out=place / kind, data=scenes, cache=place / "cache") + KINDS[kind]
            path.write_text(text, encoding="utf-8")
            made[kind] = train_words(path, [], False, "cpu", "patchword words train") / "best"
        return made[kind]

    return get


@pytest.mark.parametrize("kind", KINDS)
def test_each_kind_gives_text_picture_and_fused_vectors(words, kind):
    from patchword.interface import load

    model = load(words(kind))
    assert model.spaces == ("text", "picture", "fused") and "circle" in model
    for space in model.spaces:
        near = model.neighbours("circle", space, 3)
        assert len(near) == 3 and "circle" not in {one.word for one in near}
        assert [one.cosine for one in near] == sorted((one.cosine for one in near), reverse=True)
        assert np.isfinite(model.vectors(space)).all()
    # Coloured things: what a tower of random weights sees still tells red pictures from blue ones.
    assert model.pictures_of("red") and set(model.pictures_of("red")) <= set(model.pictures["files"])


def test_a_resumed_run_is_the_same_run(words, tmp_path):
    from accelerate import Accelerator

    from patchword.config import read_toml, validate
    from patchword.tasks.words.model import load_words
    from patchword.tasks.words.settings import WordsRun
    from patchword.tasks.words.train import words_recipe
    from patchword.train.loop import Run

    whole = load_words(words("B"))
    run = validate(read_toml(words("B").parent.with_suffix(".toml")), WordsRun, "run.toml")
    run = run.model_copy(update={"out": str(tmp_path / "run")})
    steps = []

    def recipe(most):
        made = words_recipe(run, tmp_path / "run", "")

        def step(context, parts):
            if len(steps) == most:
                raise KeyboardInterrupt
            steps.append(1)
            return made.step(context, parts)

        return dataclasses.replace(made, step=step)

    def go(most, resume):
        import torch

        torch.manual_seed(run.seed)
        started = Run(recipe(most), tmp_path / "run", Accelerator(cpu=True), run.seed, run.checkpoint_steps)
        assert not resume or started.resume()
        started.train()

    with pytest.raises(KeyboardInterrupt):
        go(3, resume=False)
    assert len(steps) == 3
    go(math.inf, resume=True)
    again = load_words(tmp_path / "run" / "best")
    assert len(steps) > 3
    for space in ("text", "fused"):
        np.testing.assert_array_equal(again.vectors(space), whole.vectors(space))


def test_neighbours_side_by_side_and_as_a_page(words, patchword, parse, tmp_path):
    status, out, _ = patchword(
        "words", "neighbours", words("B"), "red", "circle", "-k", 2, "--html", tmp_path / "n.html"
    )
    lines = [line.split("\t") for line in out.splitlines()]
    assert not status and lines[0] == ["red", "text", "picture", "fused"] and len(lines) == 6
    page = parse((tmp_path / "n.html").read_text())
    assert len(page.images) > 4 and "red" in page.text
    status, out, _ = patchword("words", "neighbours", words("B"), "red", "--json")
    assert not status and len(json.loads(out)["fused"]) == 10
    status, _, err = patchword("words", "neighbours", words("B"), "circl")
    assert status == 2 and "'circl' is none of the" in err and "circle" in err


def pairs(tmp_path):
    shapes = ["circle", "square", "triangle", "cross", "ring", "diamond", "star", "red", "blue", "green"]
    rows = [(a, b, 9 - n) for n, a in enumerate(shapes) for b in shapes[n + 1 :]]
    path = tmp_path / "own.txt"
    path.write_text("".join(";".join(map(str, row)) + "\n" for row in [*rows, ("unicorn", "red", 1)]))
    return path, len(rows)


def test_evaluation_says_coverage_intervals_and_gains(words, patchword, tmp_path):
    path, known = pairs(tmp_path)
    status, out, err = patchword("words", "evaluate", words("distributional"), "--sets", path)
    rows = [line.split("\t") for line in out.splitlines()]
    assert not status, err
    assert [row[:3] for row in rows[:3]] == [["own", "all", space] for space in ("text", "picture", "fused")]
    assert all(row[4] == f"{known} of {known + 1} pairs" for row in rows[:3])
    assert "gain" not in out.splitlines()[0] and rows[2][5].startswith("gain ")
    assert "dispersion of the pictures" in out.splitlines()[-1]
    status, out, _ = patchword(
        "words", "evaluate", words("A"), "--sets", path, "--against", words("A"), "--json"
    )
    read = [json.loads(line) for line in out.splitlines()]
    assert not status and {row["part"] for row in read} >= {"all"}
    assert all(row["gain"]["value"] == 0 and row["gain"]["p"] == 1 for row in read)


def test_pairs_that_nothing_covers_are_said_with_numbers(words, patchword, tmp_path):
    path = tmp_path / "far.txt"
    path.write_text("".join(f"unicorn{n}\tdragon{n}\t{n}\n" for n in range(30)))
    status, _, err = patchword("words", "evaluate", words("B"), "--sets", path)
    assert status == 2 and "of 30 pairs 0 are covered (0 by text vectors, 0 by picture vectors" in err
    status, _, err = patchword("words", "evaluate", words("B"), "--folder", tmp_path)
    assert status == 2 and "the pairs of men were not found" in err


def test_kind_10_what_is_no_word_no_kind_and_no_count_is_said(words):
    from patchword.errors import ConfigError, DataError
    from patchword.tasks.words.model import load_words

    model = load_words(words("B"))
    for word in (None, 3, ["red"], b"red"):
        with pytest.raises(DataError, match="expected a text, found"):
            model.neighbours(word, "text")
    with pytest.raises(ConfigError, match="there are no smell vectors: expected one of text, picture"):
        model.neighbours("red", "smell")
    for count in (0, -1):
        with pytest.raises(ConfigError, match="expected 1 or more"):
            model.neighbours("red", "text", count)
        with pytest.raises(ConfigError, match="expected 1 or more"):
            model.imagine("red", count)


def test_words_lead_to_pictures(words, patchword, tmp_path, parse):
    status, out, _ = patchword("words", "imagine", words("B"), "red", "-k", 3, "--html", tmp_path / "i.html")
    assert (
        not status
        and len(out.splitlines()) == 3
        and len(parse((tmp_path / "i.html").read_text()).images) == 3
    )
    status, _, err = patchword("words", "imagine", words("autoencoder"), "red")
    assert status == 2 and "train skip_gram of variant A or B" in err


# gensim leaves a file without header open.
@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
@pytest.mark.parametrize("to", ["word2vec", "glove", "npz", "safetensors"])
def test_exports_are_read_back(words, patchword, tmp_path, to):
    from safetensors.numpy import load_file

    from patchword.tasks.words.export import FORMATS
    from patchword.tasks.words.model import load_words

    out = tmp_path / f"vectors.{to}"
    for suffix in {".txt", ".npz", ".safetensors"} - {FORMATS[to]}:
        status, _, err = patchword("words", "export", words("B"), "--to", to, "--out", f"{out}{suffix}")
        assert status == 2 and f"let it end in {FORMATS[to]}" in err
    status, said, err = patchword(
        "words", "export", words("B"), "--to", to, "--vectors", "picture", "--out", out
    )
    assert not status, err
    model = load_words(words("B"))
    wanted = {word: row for word, row in zip(model.words, model.vectors("picture"), strict=True) if row.any()}
    assert said.strip().endswith(f"{len(wanted)} words")
    if to == "npz":
        read = np.load(out)
        found = dict(zip(read["words"].tolist(), read["vectors"], strict=True))
    elif to == "safetensors":
        read = load_file(out)
        found = dict(zip(bytes(read["words"]).decode().split("\n")[:-1], read["vectors"], strict=True))
    else:
        gensim = pytest.importorskip("gensim.models", reason="gensim is of the extra bench")
        vectors = gensim.KeyedVectors.load_word2vec_format(str(out), no_header=to == "glove")
        found = {word: vectors[word] for word in vectors.index_to_key}
    assert list(found) == list(wanted)
    for word, row in wanted.items():
        np.testing.assert_array_equal(found[word], row)


def test_bad_settings_and_data_are_said_before_anything_runs(scenes, patchword, tmp_path):
    def said(kind, *changes, find="words"):
        text = CONFIG.format(out=tmp_path / "run", data=scenes, cache=tmp_path / "cache") + KINDS[kind]
        (tmp_path / "c.toml").write_text(text)
        status, _, err = patchword("words", "train", tmp_path / "c.toml", *changes)
        assert status == 2
        return err

    (tmp_path / "empty.txt").write_text("\n\n")
    assert "found 0 words" in said(
        "distributional", 'corpus={ files = ["' + str(tmp_path / "empty.txt") + '"] }'
    )
    assert "no such file" in said(
        "distributional", 'corpus={ files = ["' + str(tmp_path / "none.txt") + '"] }'
    )
    assert "either files or captions" in said("distributional", 'corpus.files=["a.txt"]')
    assert "words is named by the texts of 5000 of" in said("distributional", "pictures.minimum=5000")
    assert "set pictures.width alike" in said("A", "model.width=9")
    assert "has 2 stages" in said("autoencoder", "stage=[]")
    assert "task is 'caption'" in said("A", "task=caption")
    status, _, err = patchword(
        "train", tmp_path / "c.toml", "task=words", 'model={ kind = "distributional" }', "stage=[]"
    )
    assert status == 2 and "use `patchword words train`" in err
