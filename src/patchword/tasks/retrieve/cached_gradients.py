"""Large batches by cached gradients: the batch is bound by time and not by memory.

Gao et al. 2021 (GradCache, arXiv 2101.06983).

    1. embed every part of the batch without a graph, and keep the vectors
    2. the contrast of all vectors, backward to the vectors: their gradients are the cache
    3. embed every part again, with a graph, and go backward from (vectors . cached gradients)

The gradient is that of the whole batch at once, over all processes: in step 2 each contrasts its pictures
with the texts of all, and after step 3 the gradients are averaged. Random numbers (dropout) of the second
pass are those of the first. A tower that normalises by its batch sees the parts, as it does with any
accumulation.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from patchword.data.captions import CaptionBatch
from patchword.errors import ConfigError
from patchword.tasks.retrieve.objective import ContrastiveObjective, Pairs
from patchword.train.step import StepContext, StepResult, clip, mean_losses


def cached_step(context: StepContext, parts: Sequence[Any]) -> StepResult:
    """One optimiser step on all parts of a batch as if they were one.

    Raises ConfigError with a captioner beside the towers.
    """
    (optimiser,) = context.optimisers
    accelerator = context.accelerator
    objective = accelerator.unwrap_model(context.objective)
    if objective.captioner is not None:
        raise ConfigError("cached_gradients is for two towers alone: leave it or [captioner] out")
    batches = [part.to(accelerator.device) for part in parts]
    named = cached_backward(objective, batches, context)
    average_gradients(context)
    losses = mean_losses(context, named)
    norm = clip(context, context.model.parameters())
    taken = math.isfinite(losses["loss"]) and math.isfinite(norm)
    if taken:
        optimiser.step()
    optimiser.zero_grad()
    return StepResult(losses, norm, taken)


def average_gradients(context: StepContext) -> None:
    """The mean over the processes in every parameter: the wrapper that would do it saw no forward pass."""
    if context.sharded is not None:
        context.sharded.settle()  # and of what is shared out, the last backward pass made the means
        return
    if context.accelerator.num_processes == 1:
        return
    grads = [one.grad for one in context.model.parameters() if one.grad is not None]
    mean = context.accelerator.reduce(torch.cat([grad.flatten() for grad in grads]), "mean")
    for grad, found in zip(grads, mean.split([grad.numel() for grad in grads]), strict=True):
        grad.copy_(found.view_as(grad))


def cached_backward(
    objective: ContrastiveObjective, batches: Sequence[CaptionBatch], context: StepContext
) -> dict[str, Tensor]:
    """Gradients of the whole batch in the parameters, and its named losses."""
    states, vectors = [], []
    if context.sharded is not None:
        context.sharded.gather()
    for batch in batches:
        states.append(_random_state())
        with torch.no_grad(), context.accelerator.autocast():
            vectors.append(objective.embed(batch))
    pictures_BE, texts_JE = (torch.cat(rows).detach().requires_grad_() for rows in zip(*vectors, strict=True))
    named = objective.compare(Pairs.of(pictures_BE, texts_JE, batches, objective.same_words), context.shares)
    context.accelerator.backward(named["contrast"])
    b = j = 0
    after = _random_state()
    for number, (batch, state, (found_bE, found_jE)) in enumerate(zip(batches, states, vectors, strict=True)):
        _restore(state)
        if context.sharded is not None:
            context.sharded.exchange(number == len(batches) - 1)
        with context.accelerator.autocast():
            again = objective.embed(batch)
        cached = (
            _rows(pictures_BE.grad, b, len(found_bE)),
            _rows(texts_JE.grad, j, len(found_jE)),
        )
        b, j = b + len(found_bE), j + len(found_jE)
        surrogate = sum((rows * grad).sum() for rows, grad in zip(again, cached, strict=True))
        if isinstance(surrogate, Tensor) and surrogate.requires_grad:
            context.accelerator.backward(surrogate)
    _restore(after)
    return {"loss": named["contrast"].detach(), **{name: value.detach() for name, value in named.items()}}


def _rows(grad: Tensor | None, first: int, count: int) -> Tensor:
    if grad is None:
        raise ConfigError("the contrast has no gradient: the batch holds no pairs")
    return grad[first : first + count]


def _random_state() -> list[Tensor]:
    devices = [torch.cuda.get_rng_state()] if torch.cuda.is_available() else []
    return [torch.get_rng_state(), *devices]


def _restore(state: Sequence[Tensor]) -> None:
    torch.set_rng_state(state[0])
    if len(state) > 1:
        torch.cuda.set_rng_state(state[1])
