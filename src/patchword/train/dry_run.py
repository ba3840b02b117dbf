"""`train --dry-run`: what a run would need, before it is begun."""

from __future__ import annotations

import time
from typing import NamedTuple

import psutil
import torch
from accelerate import Accelerator
from rich.table import Table

from patchword.log import console
from patchword.train.groups import freeze
from patchword.train.recipe import Recipe
from patchword.train.step import Shares, StepContext

OVERFIT_STEPS = 20


class _Measurements(NamedTuple):
    losses: list[float]
    seconds: list[float]
    pictures: int
    steps: int
    """Optimiser steps of an epoch."""


def dry_run(recipe: Recipe, accelerator: Accelerator, seed: int) -> None:
    """Train on one batch of each stage; print time per epoch, peak memory, and whether that loss falls."""
    table = Table(
        "stage",
        "pictures",
        "trained parameters",
        "ms per step",
        "minutes per epoch",
        "peak memory",
        "one batch: loss first -> last",
    )
    trainable = {name: parameter.requires_grad for name, parameter in recipe.model.named_parameters()}
    for stage, settings in enumerate(recipe.stages):
        freeze(recipe.model, trainable, settings.learning_rates)
        found = _overfit(recipe, stage, accelerator, seed)
        step = sorted(found.seconds)[len(found.seconds) // 2]
        count = sum(parameter.numel() for parameter in recipe.model.parameters() if parameter.requires_grad)
        table.add_row(
            settings.name,
            str(found.pictures),
            f"{count / 1e6:.2f} M",
            f"{step * 1e3:.0f}",
            f"{step * found.steps / 60:.1f}",
            f"{_peak_mebibytes(accelerator.device):.0f} MiB",
            f"{found.losses[0]:.3f} -> {found.losses[-1]:.3f}",
        )
    console().print(table)


def _overfit(recipe: Recipe, stage: int, accelerator: Accelerator, seed: int) -> _Measurements:
    """The first batch of a stage, again and again, with the same random numbers."""
    settings = recipe.stages[stage]
    objective = recipe.objective(stage).train()
    optimisers = recipe.optimisers(recipe.model, settings)
    plan = recipe.plan(stage, 0)
    losses, seconds = [], []
    for number in range(OVERFIT_STEPS):
        began = time.perf_counter()
        torch.manual_seed(seed)
        batch = recipe.batch(stage, plan[0], torch.Generator().manual_seed(seed))
        shares = Shares(batch.target_count, batch.picture_count, 0.0)
        recipe.before_step(stage, 0.0, objective)
        context = StepContext(accelerator, recipe.model, objective, optimisers, settings, number, shares)
        losses.append(recipe.step(context, [batch]).losses["loss"])
        seconds.append(time.perf_counter() - began)
    return _Measurements(losses, seconds, batch.picture_count, len(plan))


def _peak_mebibytes(device: torch.device) -> float:
    """Peak of the device's memory; on the CPU what the process holds after the step, which torch seldom gives
    back.
    """
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device) / 2**20
    return psutil.Process().memory_info().rss / 2**20
