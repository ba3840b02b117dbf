"""`patchword train` with task align, on the drawn world: from scratch, then over frozen towers from stored
features with concepts.
"""

import json

import pytest
import torch

from patchword.config import validate
from patchword.data.formats.readers import read_captions
from patchword.errors import ConfigError
from patchword.jobs.features import Pictures, store_features
from patchword.tasks.align.model import load_alignment
from patchword.tasks.align.train import AlignRun
from patchword.tasks.retrieve.codebook import gather_words, make_codebook
from patchword.tasks.retrieve.load import load_two_towers
from patchword.tasks.start import start

CONFIG = """
task = "align"
out = "{out}"
seed = 3
log_steps = 1
[data]
annotations = "{data}/dataset.json"
images = "{data}/images"
cache = "{cache}"
minimum_count = 1
[vision]
kind = "convolutional"
stem = 8
widths = [8, 16]
blocks = [0, 0]
size = 16
shared_width = 16
[text]
kind = "bert"
trainable_from = 0
[text.architecture]
hidden_size = 16
num_hidden_layers = 1
num_attention_heads = 2
intermediate_size = 16
[two_towers]
width = 16
[patch_slimming]
width = 16
aggregated = 1
[[stage]]
epochs = 2
batch = 16
captions_per_picture = 2
learning_rates = {{ "" = 1e-2 }}
[stage.objective]
kind = "hinge"
contrastive_weight = 1.0
"""


def events(folder):
    return [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]


@pytest.fixture(scope="module")
def from_scratch(scenes, run_patchword, tmp_path_factory):
    folder = tmp_path_factory.mktemp("align")
    path = folder / "run.toml"
    path.write_text(CONFIG.format(out=folder / "run", data=scenes, cache=folder / "cache"))
    finished = run_patchword("train", path, "--device", "cpu")
    assert finished.returncode == 0, finished.stderr
    return folder


def test_alignment_trains_from_scratch_and_is_selected_by_its_own_recall(from_scratch):
    steps = [row for row in events(from_scratch / "run") if row["event"] == "step"]
    assert len(steps) == 6 and set(steps[-1]["losses"]) == {"loss", "align", "contrastive", "rank_1"}
    assert steps[-1]["losses"]["contrastive"] < steps[0]["losses"]["contrastive"]
    validation = [row for row in events(from_scratch / "run") if row["event"] == "validation"]
    assert [set(row["scores"]) == set(row["towers"]) for row in validation] == [True, True]
    model = load_alignment(from_scratch / "run" / "best", "cpu")
    assert "48 training pictures, selected on 12 others" in model.facts.dataset


def test_frozen_towers_train_from_stored_features_with_concepts(from_scratch, scenes):
    """Towers of a trained model, their patches stored, region alignment as the image side, the paper's
    variant, InfoNCE.
    """
    best, store, book = from_scratch / "run" / "best", from_scratch / "store", from_scratch / "book"
    towers = load_two_towers(best, "cpu")
    files = [record.file for record in read_captions(scenes / "dataset.json")]
    vision, preprocessing = towers.model.vision, towers.settings.preprocessing
    store_features(
        vision,
        Pictures(scenes / "images", files, preprocessing),
        store,
        torch.device("cpu"),
        lambda count: None,
    )
    make_codebook(towers, gather_words(None, scenes / "dataset.json", 5)).codebook.save(book)
    text = (from_scratch / "run.toml").read_text()
    left, right = text.index("[vision]"), text.index("[patch_slimming]")
    head = f'towers = "{best}"\ncodebook = "{book}"\n[region_alignment]\nlayers = 1\n'
    text = text[: text.index("[data]")] + head + text[text.index("[data]") : left] + text[right:]
    text = text.replace("aggregated = 1", 'aggregated = 1\nvariant = "paper"').replace(
        "minimum_count = 1", f'features = "{store}"'
    )
    text = text[: text.index("[stage.objective]")] + '[stage.objective]\nkind = "infonce"\n'
    (from_scratch / "frozen.toml").write_text(text)
    with pytest.raises(
        ConfigError, match=r'a stage trains it from layer 0 on: set learning_rates."towers.vision" to 0'
    ):
        start(from_scratch / "frozen.toml", [f"out={from_scratch / 'no'}"], False, False, "cpu", "")
    changes = [f"out={from_scratch / 'frozen'}", 'stage.0.learning_rates={"" = 1e-2, "towers.vision" = 0.0}']
    start(from_scratch / "frozen.toml", changes, False, False, "cpu", "")
    steps = [row for row in events(from_scratch / "frozen") if row["event"] == "step"]
    assert {"align", "ratio"} <= set(steps[0]["losses"])
    before, after = (
        load_alignment(folder, "cpu").model for folder in (best, from_scratch / "frozen" / "best")
    )
    name = "towers.vision.stem.0.weight"
    assert before.state_dict()[name].equal(after.state_dict()[name])
    assert after.region is not None and len(after.region.codebook) > 3


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"towers": "two-towers"}, "give one"),
        ({"codebook": "somewhere"}, "region_alignment and codebook go together"),
    ],
)
def test_settings_that_contradict_each_other(change, message):
    tower = {"kind": "bert", "architecture": {}}
    values = {
        "out": "x",
        "data": {"annotations": "a", "images": "b"},
        "vision": {"kind": "convolutional"},
        "text": tower,
        "patch_slimming": {"width": 8},
        "stage": [{}],
    }
    with pytest.raises(ConfigError, match=message):
        validate({**values, **change}, AlignRun, "run.toml")
