"""Optimiser groups by parameter name, and the learning rate of each step.

Every trainable parameter is in exactly one group: that of the longest prefix that its name begins with.
Matrices decay, vectors do not.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import torch
from torch import nn

from patchword.errors import ConfigError
from patchword.train.settings import StageSettings


def assign(names: list[str], rates: Mapping[str, float]) -> dict[str, str]:
    """Group of each parameter name.

    A prefix ends at a dot of the name ("tower" takes tower.stem, not tower2.stem).

    Raises ConfigError for a parameter without a group, and for a group without a parameter (probably
    mistyped).
    """
    groups: dict[str, str] = {}
    for name in names:
        fitting = [
            prefix for prefix in rates if prefix == "" or name == prefix or name.startswith(prefix + ".")
        ]
        if not fitting:
            raise ConfigError(
                f"learning_rates has no group for {name}: add a prefix of it, or '' for the rest"
            )
        groups[name] = max(fitting, key=len)
    for prefix in rates:
        if prefix and prefix not in groups.values():
            tops = sorted({".".join(name.split(".")[:2]) for name in names})
            raise ConfigError(
                f"learning_rates names {prefix!r}, and no parameter begins with it; there are: "
                f"{', '.join(tops)}"
            )
    return groups


def highest_rate(settings: StageSettings, part: str) -> float:
    """The highest rate within a part of the model (the beginning of its names, such as "tower" or
    "towers.vision").
    """
    rates = settings.learning_rates
    inside = [rate for prefix, rate in rates.items() if f"{prefix}.".startswith(f"{part}.")]
    if part in rates:
        return max(inside)
    around = [prefix for prefix in rates if prefix == "" or part.startswith(f"{prefix}.")]
    return max([*inside, *([rates[max(around, key=len)]] if around else [])], default=0.0)


def freeze(model: nn.Module, trainable: Mapping[str, bool], rates: Mapping[str, float]) -> None:
    """A parameter learns in a stage when its module lets it (`trainable`, by name) and the rate of its group
    is not 0.
    """
    groups = assign([name for name, _ in model.named_parameters()], rates)
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(trainable[name] and rates[groups[name]] > 0)


def build_optimiser(model: nn.Module, settings: StageSettings, part: str = "") -> torch.optim.Optimizer:
    """One optimiser with two parts per group: matrices with weight decay, vectors without.

    With `part`, the first names of parameters such as "generator", it holds that part of the model alone.
    Raises ConfigError when nothing can learn.
    """
    named = [
        (name, parameter)
        for name, parameter in model.named_parameters()
        if parameter.requires_grad and (not part or name.startswith(part + "."))
    ]
    if not named:
        where = f" in {part!r}" if part else ""
        raise ConfigError(
            f"stage {settings.name!r} trains nothing{where}: every group of learning_rates is 0 or frozen"
        )
    groups = assign([name for name, _ in model.named_parameters()], settings.learning_rates)
    parts = []
    for prefix, rate in settings.learning_rates.items():
        for decays in (True, False):
            members = [p for name, p in named if groups[name] == prefix and (p.ndim > 1) == decays]
            if members:
                decay = settings.weight_decay if decays else 0.0
                group = {"params": members, "lr": rate, "base_rate": rate}
                parts.append(group | {"weight_decay": decay, "group": prefix or "rest"})
    if settings.optimiser == "sgd":
        return torch.optim.SGD(parts, momentum=settings.betas[0], fused=True)
    rule = torch.optim.Adam if settings.optimiser == "adam" else torch.optim.AdamW
    # Fused: one pass over weights, gradients and moments, which is what memory allows.
    return rule(parts, betas=settings.betas, fused=True)


def single_optimiser(model: nn.Module, settings: StageSettings) -> tuple[torch.optim.Optimizer, ...]:
    """One optimiser for everything that learns."""
    return (build_optimiser(model, settings),)


def rate_factor(settings: StageSettings, step: int, steps_per_epoch: int) -> float:
    """What the rates of step `step` (from 0, within the stage) are multiplied by: in (0, 1], 1 after a
    warm-up, then falling.
    """
    if step < settings.warm_up_steps:
        return (step + 1) / settings.warm_up_steps
    if settings.decay == "step":
        return settings.decay_factor ** (step // steps_per_epoch // settings.decay_epochs)
    if settings.decay == "cosine":
        total = settings.epochs * steps_per_epoch
        done = (step - settings.warm_up_steps) / max(1, total - settings.warm_up_steps)
        return 0.5 * (1 + math.cos(math.pi * min(1.0, done))) * 0.99 + 0.01
    return 1.0


def set_rates(optimisers: Sequence[torch.optim.Optimizer], factor: float) -> dict[str, float]:
    """Apply a factor to the base rates; returns the rate per group, for the log."""
    rates = {}
    for part in (part for optimiser in optimisers for part in optimiser.param_groups):
        part["lr"] = part["base_rate"] * factor
        rates[part["group"]] = part["lr"]
    return rates
