"""ViLBERT through the command line: trained on drawn scenes, asked to score and to point."""

import json

import numpy as np
import pytest
import torch
from PIL import Image

import patchword as package
from patchword.data.scenes import write_scenes
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
