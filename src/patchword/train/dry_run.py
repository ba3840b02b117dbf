"""`train --dry-run`: what a run would need, before it is begun."""

from __future__ import annotations

import time
from typing import Any

import psutil
import torch
from accelerate import Accelerator
from rich.console import Console
from rich.table import Table

from patchword.train.groups import build_optimiser, freeze
from patchword.train.loop import Shares

OVERFIT_STEPS = 20


def dry_run(recipe: Any, accelerator: Accelerator, seed: int) -> None:
    """Train on one batch of each stage and print time per epoch, peak memory, and whether the loss of that one batch falls."""
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
        objective = recipe.objective(stage).train()
        optimiser = build_optimiser(recipe.model, settings)
        plan = recipe.plan(stage, 0)
        losses, seconds = [], []
        for _ in range(OVERFIT_STEPS):
            began = time.perf_counter()
            torch.manual_seed(seed)
            batch = recipe.batch(stage, plan[0], torch.Generator().manual_seed(seed)).to(accelerator.device)
            loss = objective(batch, Shares(batch.target_count, batch.picture_count, 0.0))["loss"]
            optimiser.zero_grad()
            loss.backward()
            optimiser.step()
            losses.append(loss.item())
            seconds.append(time.perf_counter() - began)
        step = sorted(seconds)[len(seconds) // 2]
        count = sum(parameter.numel() for parameter in recipe.model.parameters() if parameter.requires_grad)
        table.add_row(
            settings.name,
            str(batch.picture_count),
            f"{count / 1e6:.2f} M",
            f"{step * 1e3:.0f}",
            f"{step * len(plan) / 60:.1f}",
            f"{_peak_mebibytes(accelerator.device):.0f} MiB",
            f"{losses[0]:.3f} -> {losses[-1]:.3f}",
        )
    Console().print(table)


def _peak_mebibytes(device: torch.device) -> float:
    """Peak of the device's memory; on the CPU what the process holds after the step, which torch seldom gives back."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device) / 2**20
    return psutil.Process().memory_info().rss / 2**20
