"""What painters taught by an adversary share: whose turn it is, the step of both, and how they paint.

In a step both losses are taken at the same point, in one backward pass, and then generator and discriminator
move, each by its own optimiser. (The papers alternate: the generator's gradient is there taken after the
discriminator has moved.) So nothing moves where anything is not finite, and pictures are generated once a
step.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from patchword.data.captions import CaptionBatch
from patchword.errors import ConfigError, DataError
from patchword.layers.features import masked_mean
from patchword.tasks.paint.composed import PaintModel
from patchword.tasks.paint.families import Wish, noise_of
from patchword.train.groups import build_optimiser, highest_rate
from patchword.train.settings import StageSettings
from patchword.train.step import StepContext, StepResult, backward, clip, mean_losses


class Material(NamedTuple):
    """What a batch gives both sides, without gradient to the text tower."""

    real_B3HW: Tensor
    sentence_BE: Tensor
    wrong_BE: Tensor
    """The sentence of another picture."""
    differs_B: Tensor
    """1 where that is another text, 0 where both pictures have the same."""
    tokens_BLE: Tensor
    mask_BL: Tensor
    ids_BL: Tensor


def material(model: PaintModel, batch: CaptionBatch, pad: int) -> Material:
    """Pictures and texts of a batch that has one text per picture."""
    told = model.tell(batch.tokens_RT, pad)
    tokens_BLE = told.text.tokens_BLC.detach()
    sentence_BE = masked_mean(tokens_BLE, told.mask_BL)
    differs_B = (told.ids_BL != told.ids_BL.roll(1, 0)).any(1).to(sentence_BE.dtype)
    real_B3HW = pixels_of(batch)
    return Material(
        real_B3HW, sentence_BE, sentence_BE.roll(1, 0), differs_B, tokens_BLE, told.mask_BL, told.ids_BL
    )


def pixels_of(batch: CaptionBatch) -> Tensor:
    """The pictures (B, 3, H, W) in [-1, 1] of a batch. Raises DataError where it has stored features
    instead.
    """
    if batch.inputs.pixels_B3HW is None:
        raise DataError(
            "a painter learns from pictures, and the batch has stored features: leave data.features out"
        )
    return batch.inputs.pixels_B3HW


@contextmanager
def held(module: nn.Module) -> Iterator[None]:
    """Inside, gradients pass through a module and none reaches its parameters."""
    learning = [parameter for parameter in module.parameters() if parameter.requires_grad]
    for parameter in learning:
        parameter.requires_grad_(False)
    try:
        yield
    finally:
        for parameter in learning:
            parameter.requires_grad_(True)


def taken_for_real(logits_B: Tensor) -> Tensor:
    """Cross-entropy of "real", -log sigmoid, summed."""
    return F.softplus(-logits_B).sum()


def taken_for_false(logits_B: Tensor, weights_B: Tensor | None = None) -> Tensor:
    """Cross-entropy of "not real, or of another text", -log(1 - sigmoid), summed with weights."""
    losses_B = F.softplus(logits_B)
    return losses_B.sum() if weights_B is None else (losses_B * weights_B).sum()


def optimisers_of(*parts: str) -> Callable[[nn.Module, StageSettings], tuple[torch.optim.Optimizer, ...]]:
    """One optimiser for each part of the model, such as "painter.generator"."""

    def build(model: nn.Module, stage: StageSettings) -> tuple[torch.optim.Optimizer, ...]:
        return tuple(build_optimiser(model, stage, part) for part in parts)

    return build


def adversarial_step(context: StepContext, parts: Sequence[Any]) -> StepResult:
    """One backward pass for all optimisers; each clips the gradient of its own parameters and moves them."""
    losses = mean_losses(context, backward(context, parts))
    norms = [clip(context, _parameters(optimiser)) for optimiser in context.optimisers]
    norm = math.sqrt(sum(norm**2 for norm in norms))
    taken = math.isfinite(losses["loss"]) and math.isfinite(norm)
    for optimiser in context.optimisers:
        if taken:
            optimiser.step()
        optimiser.zero_grad()
    return StepResult(losses, norm, taken)


def _parameters(optimiser: Any) -> list[nn.Parameter]:
    return [parameter for group in optimiser.param_groups for parameter in group["params"]]


def check_text_is_held(stage: StageSettings) -> None:
    """Raises ConfigError for a stage in which an adversary's gradient would train the text tower."""
    if highest_rate(stage, "text") > 0:
        raise ConfigError(
            f"stage {stage.name!r} gives the text tower a learning rate of "
            f"{highest_rate(stage, 'text'):g}, and an "
            'adversary trains none: give "text" the rate 0, and take a trained one by text_from'
        )


def check_wish(settings: Any, wish: Wish) -> None:
    """Raises ConfigError for a wish that a generator of one pass cannot fulfil."""
    for name, value in (
        ("guidance", None if wish.guidance == 1 else wish.guidance),
        ("steps", None if wish.steps == 1 else wish.steps),
        ("threshold", wish.percentile),
        ("choice of tokens", wish.tokens),
    ):
        if value is not None:
            raise ConfigError(
                f"a painter of kind {settings.kind!r} generates a picture in one pass and knows no {name}: "
                "leave it out"
            )


def noise_for(wish: Wish, width: int, device: torch.device, largest: float = math.inf) -> Tensor:
    """Noise (B, Z) by the seeds of a wish; values beyond `largest` are drawn again."""
    draw = noise_of(wish.seeds, (width,), device)
    noise_BZ = draw()
    while bool((noise_BZ.abs() > largest).any()):
        noise_BZ = torch.where(noise_BZ.abs() > largest, draw(), noise_BZ)
    return noise_BZ
