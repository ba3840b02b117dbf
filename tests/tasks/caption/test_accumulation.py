"""A batch that is cut into parts is the same step, for the prototype bank too."""

import numpy as np
import pytest
import torch
from accelerate import Accelerator

from patchword.config import validate
from patchword.tasks.caption.settings import CaptionRun
from patchword.tasks.caption.train import caption_recipe
from patchword.train.loop import Run

BATCH = 16
STILL = 1e-9
"""A rate at which the weights stay where they are, so that only rounding tells the two trainings apart."""


@pytest.fixture
def trained(scenes, towers, tmp_path):
    """Trains one epoch with a batch in so many parts; the bank, the log and the weights after it."""
    from safetensors.torch import load_file

    def train(parts, placement):
        values = {
            "out": str(tmp_path),
            "data": {
                "annotations": str(scenes / "dataset.json"),
                "images": str(scenes / "images"),
                "cache": str(tmp_path / "cache"),
                "minimum_count": 1,
            },
            "tower": {"kind": "convolutional", "stem": 8, "widths": [8], "blocks": [0], "size": 16},
            "captioner": {
                "kind": "caption_transformer",
                "width": 16,
                "heads": 2,
                "hidden": 16,
                "encoder_layers": 0,
                "decoder_layers": 2,
                "dropout": 0.0,
                "memory": {"placement": placement, "count": 4, "bank": 4096, "cluster_every": 2}
                | {"effect_after": 0, "neighbours": 2},
            },
            "stage": [{"epochs": 1, "batch": BATCH, "captions_per_picture": 2, "bucketed": False}],
        }
        values["stage"][0] |= {"accumulate": parts, "learning_rates": {"tower": 0.0, "captioner": STILL}}
        folder = tmp_path / f"{placement}-{parts}"
        recipe = caption_recipe(validate(values, CaptionRun, "test"), folder, "test")
        Run(recipe, folder, Accelerator(cpu=True), 3, checkpoint_steps=0, log_steps=1).train()
        return load_file(folder / "checkpoints" / "last" / "training.safetensors"), recipe.model.state_dict()

    return train


@pytest.mark.parametrize("placement", ["self_concat", "cross_add", "sequential"])
def test_every_part_reaches_the_prototype_bank(trained, placement):
    """The bank holds the keys of all pictures in their order, and prototypes are those of the whole batch.

    Captions are not sorted by length, so that parts are padded to lengths of their own.
    """
    (whole, model), (cut, cut_model) = (trained(parts, placement) for parts in (1, 4))
    assert cut["extra.bank.pointers"].tolist() == whole["extra.bank.pointers"].tolist()
    steps, captions_per_picture = 3, 2
    assert len(whole["extra.bank.keys_LNC"][0]) > steps * BATCH * captions_per_picture
    for name in ("keys_LNC", "values_LNC"):
        torch.testing.assert_close(
            cut[f"extra.bank.{name}"], whole[f"extra.bank.{name}"], rtol=1e-3, atol=1e-5
        )
    np.testing.assert_array_equal(
        cut["extra.bank.contexts_NW"][:, 1:], whole["extra.bank.contexts_NW"][:, 1:]
    )
    for name in ("captioner.memory.keys_LMC", "captioner.memory.values_LMC", "captioner.memory.attention_LM"):
        torch.testing.assert_close(cut_model[name], model[name], rtol=1e-3, atol=1e-5)
    assert model["captioner.memory.live_LM"].any()


def test_pictures_of_all_parts_are_told_apart(trained):
    """What the bank remembers of a patch names its picture: sixteen of them, not four and four and four."""
    (whole, _), (cut, _) = (trained(parts, "cross_add") for parts in (1, 4))
    for kept in (whole, cut):
        assert kept["extra.bank.contexts_NW"][:, 0].unique().tolist() == list(range(BATCH))
