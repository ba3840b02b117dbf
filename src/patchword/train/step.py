"""One optimiser step: what it works with, what it gives, and the usual one, for recipes without their own.

A step of its own may have several optimisers, for instance those of a generator and a discriminator. It is a
function of a `StepContext` and the parts of a batch, and keeps to three rules: losses and gradient norms are
looked at before any optimiser moves; a step whose loss or norm is not finite moves nothing and says so by
`taken = False`; every gradient is zero again at its end. Nothing else may be remembered from one step to the
next, or a resumed run would differ.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from contextlib import nullcontext
from typing import Any, NamedTuple

import torch
from accelerate import Accelerator
from torch import Tensor, nn

from patchword.train.settings import StageSettings


class Shares(NamedTuple):
    """What losses are divided by: counts over all processes and parts of the step, per process.

    The mean of the processes' gradients is then the gradient of the mean over the whole batch, however the
    rows were split.
    """

    targets: float
    pictures: float
    progress: float
    """Share of the stage that is done, for weights that follow a schedule."""


class StepContext(NamedTuple):
    """What an optimiser step works with."""

    accelerator: Accelerator
    model: nn.Module
    """What is trained, without the wrappers of several processes."""
    objective: nn.Module
    """Owns the model and gives named losses; wrapped for several processes: call it, do not look into it."""
    optimisers: tuple[Any, ...]
    """Those that the recipe made, in its order; their learning rates are already those of this step."""
    settings: StageSettings
    step: int
    """Number of the step within its stage, from 0."""
    shares: Shares
    sharded: Any = None
    """`train/sharded.py`, where the weights are shared out between processes."""


class StepResult(NamedTuple):
    """What an optimiser step gave."""

    losses: dict[str, float]
    """Named losses, means over the processes, the total under "loss"."""
    gradient_norm: float
    """Norm of the whole gradient before it was clipped."""
    taken: bool
    """Whether the weights moved; False where a loss or a norm was not finite."""


OptimiserStep = Callable[[StepContext, Sequence[Any]], StepResult]


def one_step(context: StepContext, parts: Sequence[Any]) -> StepResult:
    """Backward passes over all parts of a batch, then one step of the only optimiser."""
    (optimiser,) = context.optimisers
    losses = mean_losses(context, backward(context, parts))
    norm = clip(context, context.model.parameters())
    taken = math.isfinite(losses["loss"]) and math.isfinite(norm)
    if taken:
        optimiser.step()
    optimiser.zero_grad()
    return StepResult(losses, norm, taken)


def backward(context: StepContext, parts: Sequence[Any]) -> dict[str, Tensor]:
    """A backward pass of "loss" for each part; processes exchange gradients at the last one.

    Named losses, summed.
    """
    accelerator, sharded = context.accelerator, context.sharded
    losses: dict[str, Tensor] = {}
    if sharded is not None:
        sharded.gather()
    for number, part in enumerate(parts):
        last = number == len(parts) - 1
        if sharded is not None:
            sharded.exchange(last)
        with nullcontext() if last or sharded is not None else accelerator.no_sync(context.objective):
            with accelerator.autocast():
                named = context.objective(part.to(accelerator.device), context.shares)
            accelerator.backward(named["loss"])
        for name, value in named.items():
            value = value.detach().float()
            losses[name] = losses[name] + value if name in losses else value
    if sharded is not None:
        sharded.settle()
    return losses


def mean_losses(context: StepContext, losses: dict[str, Tensor]) -> dict[str, float]:
    """The means of named losses over the processes, as numbers."""
    means = context.accelerator.reduce(torch.stack(list(losses.values())), "mean").tolist()
    return dict(zip(losses, means, strict=True))


def clip(context: StepContext, parameters: Iterable[nn.Parameter]) -> float:
    """Clip the gradient of the parameters to the stage's `clip_norm`; the norm that it had before."""
    having = [parameter for parameter in parameters if parameter.grad is not None]
    most = context.settings.clip_norm or math.inf
    if context.sharded is not None:
        return float(context.sharded.clip(having, most))
    return float(context.accelerator.clip_grad_norm_(having, most))
