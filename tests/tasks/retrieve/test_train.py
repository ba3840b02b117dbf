"""Training two towers with a captioner beside them: what is saved, and that an interrupted run goes on the
same way.
"""

import json
from dataclasses import replace

import pytest
import torch
from accelerate import Accelerator

from patchword.config import validate
from patchword.errors import ConfigError
from patchword.tasks.retrieve.load import load_two_towers
from patchword.tasks.retrieve.train import RetrieveRun, retrieve_recipe
from patchword.train.loop import Run


def settings(scenes, cache, **changes):
    text = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 16}
    text |= {"hidden_dropout_prob": 0.1, "attention_probs_dropout_prob": 0.0}
    captioner = {
        "kind": "caption_transformer",
        "width": 16,
        "heads": 2,
        "hidden": 16,
        "encoder_layers": 0,
        "decoder_layers": 1,
    }
    values = {
        "task": "retrieve",
        "out": "unused",
        "data": {
            "annotations": str(scenes / "dataset.json"),
            "images": str(scenes / "images"),
            "cache": str(cache),
            "minimum_count": 1,
        },
        "vision": {
            "kind": "convolutional",
            "stem": 8,
            "widths": [8, 16],
            "blocks": [0, 0],
            "size": 16,
            "shared_width": 16,
        },
        "text": {"kind": "bert", "trainable_from": 0, "architecture": text},
        "two_towers": {"width": 16},
        "captioner": captioner,
        "stage": [
            {
                "name": "small",
                "size": 24,
                "epochs": 1,
                "batch": 16,
                "caption_weight": 1.0,
                "learning_rates": {"": 5e-3},
            },
            {
                "name": "full",
                "epochs": 1,
                "batch": 16,
                "caption_weight": 0.5,
                "label_smoothing": 0.1,
                "learning_rates": {"": 5e-3},
            },
        ],
    }
    return validate({**values, **changes}, RetrieveRun, "test")


def trained(run, folder, stop_at=None):
    """Losses of a run in `folder`, which goes on from a checkpoint where there is one and breaks off after
    step `stop_at`.
    """
    torch.manual_seed(0)
    recipe = retrieve_recipe(run, folder, "test")

    def interrupted(step, objective):
        if step == stop_at:
            raise KeyboardInterrupt
        return recipe.after_step(step, objective)

    training = Run(
        replace(recipe, after_step=interrupted),
        folder,
        Accelerator(cpu=True),
        run.seed,
        checkpoint_steps=1,
        log_steps=1,
    )
    training.resume()
    training.train()
    rows = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    return [row["losses"] for row in rows if row["event"] == "step"]


def test_the_captioner_teaches_and_is_left_out_of_the_model(scenes, tmp_path):
    run = settings(scenes, tmp_path / "cache")
    losses = trained(run, tmp_path / "whole")
    assert losses[-1]["cross_entropy"] < losses[0]["cross_entropy"]
    assert losses[0]["loss"] == pytest.approx(losses[0]["contrast"] + losses[0]["cross_entropy"], rel=1e-5)
    towers = load_two_towers(tmp_path / "whole" / "best", "cpu")
    assert not any("captioner" in name for name, _ in towers.model.named_parameters())
    with pytest.raises(KeyboardInterrupt):
        trained(run, tmp_path / "broken", stop_at=4)
    assert trained(run, tmp_path / "broken") == losses


def test_a_captioner_that_nothing_weighs_is_refused(scenes, tmp_path):
    unweighed = [{"name": "only", "epochs": 1, "batch": 16}]
    with pytest.raises(ConfigError, match="no stage has a caption_weight above 0"):
        retrieve_recipe(settings(scenes, tmp_path, stage=unweighed), tmp_path, "test")
    with pytest.raises(ConfigError, match="there is no \\[captioner\\] section"):
        retrieve_recipe(settings(scenes, tmp_path, captioner=None), tmp_path, "test")


def test_two_towers_read_shards_and_processes_share_the_samples(shards, tmp_path):
    """Of every step each process takes its own samples, none twice, and together they are the epoch."""
    run = settings(shards, tmp_path / "cache")
    data = run.data.model_copy(update={"annotations": str(shards), "images": str(shards), "window": 16})
    recipe = retrieve_recipe(run.model_copy(update={"data": data}), tmp_path / "run", "test")
    plan = recipe.plan(0, 0)
    whole = [entry.record for entries in plan for entry in entries]
    assert len(set(whole)) == len(whole) == 48
    for processes in (2, 3):
        shares = [
            [entry.record for entries in plan for entry in entries[rank::processes]]
            for rank in range(processes)
        ]
        assert sorted(sum(shares, [])) == sorted(whole) and all(shares)
    batch = recipe.batch(0, plan[0][1::2], None)
    assert len(batch.image_ids) == 8 and batch.inputs.pixels_B3HW.shape == (8, 3, 24, 24) and not batch.lost
