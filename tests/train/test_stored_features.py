"""`store_features`: a frozen tower looks at every picture once, and the training is what it would be without."""

import json

import pytest


@pytest.fixture
def frozen(config, tmp_path):
    """The configuration of one epoch of a captioner over a tower that stays as it is."""
    text = config.read_text().split('[[stage]]\nname = "second"')[0]
    text = text.replace("[data.augmentation]\nsmallest_area = 0.8\n", "").replace("epochs = 2", "epochs = 1")
    path = tmp_path / "frozen.toml"
    path.write_text("store_features = true\n" + text.replace('"tower" = 1e-3', '"tower" = 0.0'))
    return path


def losses(run):
    rows = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    return [row["loss"] for row in rows if row["event"] == "step"]


def test_the_tower_looks_once_and_the_losses_are_those_of_a_training_on_pictures(frozen, patchword, tmp_path):
    earlier = 0
    common = (f"data.cache={tmp_path / 'cache'}", "--device", "cpu")
    for name, more in (("first", ()), ("again", ()), ("pictures", ("store_features=false",))):
        status, _, errors = patchword("train", frozen, f"out={tmp_path / name}", *more, *common)
        assert status == 0, errors
        (store,) = (tmp_path / "cache" / "features").iterdir()
        made = (store / "manifest.json").stat().st_mtime_ns
        assert made == earlier or name == "first"
        earlier = made
    first, again, pictures = (losses(tmp_path / name) for name in ("first", "again", "pictures"))
    assert first == again
    assert first == pytest.approx(pictures, abs=5e-3), "features are kept in half precision"


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ('stage.0.learning_rates={"tower" = 1e-3, "captioner" = 1e-3}', "is for a frozen tower"),
        ("data.augmentation.smallest_area=0.8", "leave one of them out"),
    ],
)
def test_what_needs_the_pictures_is_refused(frozen, patchword, change, message):
    status, _, errors = patchword("train", frozen, change, "--device", "cpu")
    assert status == 2 and message in errors
