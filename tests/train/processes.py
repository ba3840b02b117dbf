"""Trainings that `test_processes.py` runs on one process and, by torchrun, on several.

    python processes.py DATA OUT NAME ...        each training NAME into OUT/NAME.json

A training is one of `TRAININGS`; OUT/NAME holds its run folder, which is gone on with where it is there.
"""

from __future__ import annotations

import json
import sys
from dataclasses import replace
from pathlib import Path

import torch
from accelerate import Accelerator
from accelerate.state import AcceleratorState
from accelerate.utils import DistributedDataParallelKwargs

from patchword.config import validate
from patchword.lookup import look_up
from patchword.tasks.table import TASKS
from patchword.train.loop import Run

CELLS = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 16}
CELLS |= {"image_size": 16, "patch_size": 8, "hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0}
TOWER = {"kind": "vit", "architecture": CELLS, "trainable_from": 0}  # no statistics over a batch
TEXT = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 16}
TEXT |= {"hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0}
MEMORY = {
    "placement": "self_concat",
    "count": 4,
    "bank": 4096,
    "cluster_every": 2,
    "effect_after": 0,
    "neighbours": 2,
}
DECODER = {"kind": "caption_transformer", "width": 16, "heads": 2, "hidden": 16, "encoder_layers": 0}
DECODER |= {"decoder_layers": 1, "dropout": 0.0}
FROZEN = {"epochs": 2, "batch": 16, "learning_rates": {"": 3e-3, "tower": 0.0}, "validate_every": 2}


def caption(**changes):
    values = {"task": "caption", "tower": TOWER, "captioner": {**DECODER, "memory": MEMORY}}
    return {**values, "stage": [{**FROZEN, "memory": "on", "captions_per_picture": 2}], **changes}


FIRST = {**FROZEN, "epochs": 1, "memory": "on", "captions_per_picture": 2, "accumulate": 2}


def retrieve(**stage):
    values = {
        "task": "retrieve",
        "vision": TOWER,
        "text": {"kind": "bert", "trainable_from": 0, "architecture": TEXT},
    }
    rates = {"": 3e-3, "vision": 0.0}
    return {**values, "two_towers": {"width": 16}, "stage": [{**FROZEN, "learning_rates": rates, **stage}]}


TRAININGS = {
    "prototypes": caption(),
    "towers": retrieve(),
    "cached": retrieve(cached_gradients=True, accumulate=2),
    "bf16": retrieve(cached_gradients=True, accumulate=2) | {"precision": "bf16"},
    "resumed": caption(),
    "sharded_cached": retrieve(cached_gradients=True, accumulate=2),
    "sharded_bf16": retrieve(cached_gradients=True, accumulate=2) | {"precision": "bf16"},
    "sharded_stages": caption(stage=[FIRST, {**FIRST, "learning_rates": {"": 3e-3}, "start_from": "best"}]),
    "sharded_resumed": caption(),
}
"""Those that are called "sharded" share out their weights where there are several processes."""


def train(data: Path, out: Path, name: str, stop_at: int | None = None) -> list[float]:
    """The losses of all steps; breaks off after step `stop_at`, and goes on where there is a checkpoint."""
    values = {**TRAININGS[name], "out": str(out / name)}
    values["data"] = {
        "annotations": str(data / "dataset.json"),
        "images": str(data / "images"),
        "minimum_count": 1,
    }
    values["data"]["cache"] = str(out / "cache")
    settings = validate(values, look_up(TASKS[values["task"]].run), "test")
    unused = DistributedDataParallelKwargs(find_unused_parameters=True)
    precision = "bf16" if settings.precision == "bf16" else "no"
    AcceleratorState._reset_state()  # another training had another precision
    accelerator = Accelerator(mixed_precision=precision, cpu=True, kwargs_handlers=[unused])
    torch.manual_seed(settings.seed)
    recipe = look_up(TASKS[values["task"]].recipe)(settings, out / name, "test")

    def after_step(step, objective):
        if step == stop_at:
            raise KeyboardInterrupt
        return recipe.after_step(step, objective)

    (out / name).mkdir(parents=True, exist_ok=True)
    run = Run(
        replace(recipe, after_step=after_step), out / name, accelerator, 3, checkpoint_steps=1, log_steps=1
    )
    run.sharded = name.startswith("sharded")
    run.resume()
    try:
        run.train()
    except KeyboardInterrupt:
        accelerator.free_memory()
    AcceleratorState._reset_state()
    rows = [json.loads(line) for line in (out / name / "metrics.jsonl").read_text().splitlines()]
    return [row["loss"] for row in rows if row["event"] == "step"]


if __name__ == "__main__":
    data, out = map(Path, sys.argv[1:3])
    for name in sys.argv[3:]:
        found = train(data, out, name, stop_at=3 if name.endswith("resumed") else None)
        (out / f"{name}.json").write_text(json.dumps(found))
