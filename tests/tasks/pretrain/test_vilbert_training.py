"""ViLBERT through the command line: trained on drawn scenes, asked to score and to point."""

import json

import numpy as np
import pytest
import torch
from PIL import Image

import patchword as package
from patchword.data.scenes import write_phrases, write_questions, write_scenes
from patchword.errors import DataError, ModelError
from patchword.tasks.pretrain.point import pointing_model

TINY = [
    "tower.stem=4", "tower.widths=[8]", "tower.blocks=[0]", "tower.shared_width=8", "model.width=16",
    "model.heads=2", "model.hidden=16", "model.inner=16", "model.pairs=1", "text.architecture.hidden_size=16",
    "text.architecture.num_hidden_layers=2", "text.architecture.num_attention_heads=2", "data.held_out=8",
    "text.architecture.intermediate_size=16", "stage.0.epochs=1", "stage.0.batch=8",
]  # fmt: skip


@pytest.fixture(scope="module")
def trained(tmp_path_factory, run_patchword):
    from patchword.config import find_config

    folder = tmp_path_factory.mktemp("vilbert")
    write_scenes(folder, 32, 1, 24)
    config = folder / "run.toml"
    config.write_text(
        find_config("vilbert-scenes").read_text().replace('tower_from = "runs/eyes-scenes/best"\n', "")
    )
    finished = run_patchword(
        "train", config, *TINY, f"data.annotations={folder / 'dataset.json'}", f"data.images={folder / 'images'}",
        f"data.cache={folder / 'cache'}", f"out={folder / 'run'}", "--device", "cpu",
    )  # fmt: skip
    assert finished.returncode == 0, finished.stderr
    assert "hidden regions are not predicted" in finished.stderr and "pair AUC" in finished.stderr
    return folder


def test_a_model_comes_out_that_scores_and_points(trained, patchword, tmp_path):
    model = package.load(trained / "run" / "best", "cpu")
    photos = sorted((trained / "images").glob("*.png"))[:2]
    shares = model.score(photos, ["a red ring", "a blue star"])
    assert shares.shape == (2,) and ((shares > 0) & (shares < 1)).all() and "two streams" in repr(model)
    np.testing.assert_allclose(model.score(photos[1:], ["a blue star"]), shares[1:], rtol=1e-4)
    with pytest.raises(DataError, match="give one for each"):
        model.score(photos, ["a red ring"])
    regions = model.point(photos[0], "a red ring", 5)
    assert len(regions) == 5 and [one.share for one in regions] == sorted(
        (one.share for one in regions), reverse=True
    )
    out = tmp_path / "pointed.png"
    status, said, err = patchword(
        "point", photos[0], "a red ring", "--model", trained / "run" / "best", "--out", out, "--device", "cpu"
    )
    assert status == 0 and len(said.splitlines()) == 3, err
    with Image.open(out) as drawn:
        assert drawn.size == (320, 344)
    left, top, right, bottom = map(int, said.splitlines()[0].split()[1:])
    assert 0 <= left < right <= 24 and 0 <= top < bottom <= 24
    status, said, _ = patchword(
        "point", photos[0], "a zebra ring", "--model", trained / "run" / "best", "--json"
    )
    assert status == 0 and len(json.loads(said)["regions"]) == 3
    status, _, err = patchword("point", photos[0], "zebra", "--model", trained / "run" / "best")
    assert status == 2 and "no word that the model knows" in err
    call = ("point", photos[0], "red " * 300, "--model", trained / "run" / "best")
    status, _, err = patchword(*call)
    assert status == 0 and "the text has 300 words and the model reads" in err


def test_other_models_do_not_point(towers):
    with pytest.raises(ModelError, match="without two streams"):
        pointing_model(str(towers), "cpu")


def test_regions_of_an_imagenet_tower_have_its_classes():
    from patchword.composed import build_tower
    from patchword.tasks.pretrain.regions import see_regions
    from patchword.towers.settings import EfficientNetLiteConfig

    tower = build_tower(EfficientNetLiteConfig(kind="efficientnet-lite0", weights="none", size=64)).eval()
    pixels = torch.rand(2, 3, 64, 64)
    for kind, regions in (("cells", 5), ("crops", 35)):
        features, classes, boxes = see_regions(tower, pixels, kind)
        assert features.shape == (2, regions, tower.width) and classes.shape == (2, regions, 1000)
        assert boxes.shape == (regions, 4)
        torch.testing.assert_close(classes.sum(-1), torch.ones(2, regions), atol=1e-4, rtol=1e-4)


def test_regions_of_stored_features_are_those_of_the_pictures():
    from patchword.composed import build_tower
    from patchword.data.captions import Inputs
    from patchword.errors import ConfigError
    from patchword.tasks.pretrain.regions import all_regions, see_regions
    from patchword.towers.settings import EfficientNetLiteConfig

    tower = build_tower(EfficientNetLiteConfig(kind="efficientnet-lite0", weights="none", size=64)).eval()
    pixels, told = torch.rand(2, 3, 64, 64), []

    class Stored:
        def load(self, files, generator):
            with torch.inference_mode():
                return Inputs(features=tower(pixels[[int(name) for name in files]]))

    found = all_regions(tower, Stored(), ["0", "1"], "cells", told.append)
    features, classes, _ = see_regions(tower, pixels, "cells")
    torch.testing.assert_close(found.features_nNF, features.half(), atol=1e-3, rtol=1e-3)
    torch.testing.assert_close(found.classes_nNK, classes.half(), atol=1e-3, rtol=1e-3)
    assert told == [2]
    with pytest.raises(ConfigError, match="no crops"):
        all_regions(tower, Stored(), ["0"], "crops", told.append)


def test_stored_features_are_refused_where_nothing_reads_them(patchword):
    status, _, err = patchword("train", "data2vec-scenes", "data.features=features/mine", "--device", "cpu")
    assert status == 2 and "data.features is read by model.kind vilbert alone" in err.replace("\n", " ")


def test_pre_trained_streams_answer_questions(trained, patchword, run_patchword):
    """The same command as for any model that answers; words are those of the questions."""
    from patchword.config import find_config
    from patchword.tensors import read_tensors

    write_questions(trained, 32, 1)
    write_scenes(trained, 6, 1, 24, "val")
    write_questions(trained, 6, 1, "val")
    sizes = [
        one.replace("model.", "two_streams.vilbert.").replace("text.", "two_streams.text.") for one in TINY
    ]
    sizes = [one for one in sizes if not one.startswith("data.held_out")]
    config = trained / "answers.toml"
    config.write_text(
        find_config("vilbert-answers-scenes")
        .read_text()
        .replace("runs/eyes-scenes/best", str(trained / "run/best"))
    )
    given = [
        f"data.annotations={trained / 'questions.jsonl'}", f"data.images={trained / 'images'}",
        f"data.cache={trained / 'cache'}", f"two_streams_from={trained / 'run' / 'best'}", "stage.0.validate_every=1",
    ]  # fmt: skip
    finished = run_patchword("train", config, *sizes, *given, f"out={trained / 'answers'}", "--device", "cpu")
    assert finished.returncode == 0, finished.stderr
    assert "words were read there" in finished.stderr.replace("\n", " ")
    best = trained / "answers" / "best"
    before, after = (
        read_tensors(folder / "model.safetensors") for folder in (trained / "run" / "best", best)
    )
    name = "feature.weight"
    moved = (after[f"answerer.encoder.streams.{name}"] - before[f"vilbert.{name}"]).abs().max()
    assert 0 < moved < 0.1  # begun with what was pre-trained, and learnt since
    photo = sorted((trained / "images").glob("*.png"))[0]
    status, said, err = patchword("ask", photo, "what colour is the ring?", "--model", best, "--anyway")
    assert status == 0 and said.strip(), err
    status, said, err = patchword(
        "evaluate",
        best,
        "--data",
        trained / "questions.jsonl",
        "--images",
        trained / "images",
        "--device",
        "cpu",
    )
    assert status == 0 and "VQA" in said, err
    wrong = [one.replace("vilbert.width=16", "vilbert.width=32") for one in sizes]
    finished = run_patchword("train", config, *wrong, *given, f"out={trained / 'wrong'}", "--device", "cpu")
    assert finished.returncode == 2 and "give the streams the sizes" in " ".join(finished.stderr.split())


def test_pre_trained_streams_learn_to_point(trained, patchword, run_patchword, tmp_path):
    from patchword.config import find_config

    for split, count in (("train", 40), ("val", 10)):
        write_scenes(tmp_path, count, 2, 24, split)
        phrases = write_phrases(tmp_path, count, 2, 24, split)
    given = [
        f"data.phrases={phrases}", f"data.images={tmp_path / 'images'}", f"data.cache={tmp_path / 'cache'}",
        f"model_from={trained / 'run' / 'best'}", "stage.0.epochs=1", "stage.0.validate_every=1",
    ]  # fmt: skip
    finished = run_patchword(
        "train", find_config("vilbert-pointing-scenes"), *given, f"out={tmp_path / 'run'}", "--device", "cpu"
    )
    assert finished.returncode == 0, finished.stderr
    assert "phrases found" in finished.stderr
    photo = sorted((tmp_path / "images").glob("*.png"))[0]
    model = package.load(tmp_path / "run" / "best", "cpu")
    regions = model.point(photo, "the red ring", 5)
    assert [one.share for one in regions] == sorted((one.share for one in regions), reverse=True)
    status, said, err = patchword("point", photo, "a red ring", "--model", tmp_path / "run" / "best")
    assert status == 0 and len(said.splitlines()) == 3, err
    phrases.write_text(phrases.read_text() + '{"image": "a.png", "phrase": "a", "box": [0.5, 0, 0.2, 1]}\n')
    finished = run_patchword(
        "train", find_config("vilbert-pointing-scenes"), *given, f"out={tmp_path / 'no'}"
    )
    assert finished.returncode == 2 and "does not lie in the picture" in " ".join(finished.stderr.split())


def test_squares_and_how_far_boxes_overlap():
    """The mean of every square of cells beside its box; an overlap is that of a hand-worked pair."""
    from patchword.layers.regions import overlaps, square_boxes, squares

    cells_NF = torch.arange(12.0)[:, None]  # 3 rows of 4
    boxes_M4, means_MF = square_boxes((3, 4), (2,)), squares(cells_NF, (3, 4), (2,))
    assert boxes_M4.shape == (6, 4) and boxes_M4[4].tolist() == pytest.approx([0.25, 1 / 3, 0.75, 1.0])
    assert means_MF[4].item() == (5 + 6 + 9 + 10) / 4
    found = overlaps(
        torch.tensor([(0.0, 0.0, 0.5, 1.0), (0.5, 0.0, 1.0, 0.5)]), torch.tensor([0.25, 0.0, 0.75, 1.0])
    )
    assert found.tolist() == pytest.approx([0.25 / 0.75, 0.125 / 0.625])


def test_what_streams_are_worth_is_measured(trained, patchword, tmp_path):
    """Every text is read with every picture of a pool; a tower alone has nothing to measure."""
    write_scenes(tmp_path, 12, 1, 24, "val")
    call = (
        "evaluate",
        trained / "run" / "best",
        "--data",
        tmp_path / "dataset.json",
        "--images",
        tmp_path / "images",
    )
    status, said, err = patchword(*call, "--out", tmp_path / "scores.json", "--device", "cpu")
    assert status == 0 and "among 12" in said and "12 pictures of val" in " ".join(said.split()), err
    scores = json.loads((tmp_path / "scores.json").read_text())
    assert (
        scores["picture_to_text_R@1"] <= scores["picture_to_text_R@5"] <= scores["picture_to_text_R@10"] <= 1
    )
    assert 0 <= scores["pair_auc"] <= 1 and {"words", "words_other_picture"} <= set(scores)
    status, _, err = patchword(*call, "--split", "test")
    assert status == 2 and "no record belongs to the split 'test'" in err
