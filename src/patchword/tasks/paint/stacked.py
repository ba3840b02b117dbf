"""StackGAN as a family of painters: its losses, stage by stage. Equations: `models/painters/stack_gan.py`.

A stage of the training teaches the part of the painter that has a learning rate: "painter.first", and after
it "painter.second", with the first one held.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from patchword.data.captions import CaptionBatch
from patchword.errors import ConfigError
from patchword.ids import SpecialIds
from patchword.layers.features import masked_mean
from patchword.layers.gaussian import Condition, divergence
from patchword.models.painters.stack_gan import Stage
from patchword.tasks.paint.adversarial import (
    Material,
    adversarial_step,
    check_text_is_held,
    check_wish,
    held,
    material,
    noise_for,
    optimisers_of,
    taken_for_false,
    taken_for_real,
)
from patchword.tasks.paint.composed import PaintModel, Prompt
from patchword.tasks.paint.families import Family, Wish
from patchword.train.groups import highest_rate
from patchword.train.settings import StageSettings
from patchword.train.step import Shares


class StackGanLoss(nn.Module):
    """Losses of one stage: its discriminator, its generator, and the divergence of its condition."""

    def __init__(self, model: PaintModel, pad: int, second: bool) -> None:
        """`second`: the second stage learns, on pictures of the first."""
        super().__init__()
        self.model, self.pad, self.second = model, pad, second

    def forward(self, batch: CaptionBatch, shares: Shares) -> dict[str, Tensor]:
        """Named losses, the total under "loss"."""
        painter, given = self.model.painter, material(self.model, batch, self.pad)
        config = painter.config
        noise_BZ = torch.randn(len(given.real_B3HW), config.noise, device=given.real_B3HW.device)
        if self.second:
            with torch.no_grad():
                small_B3hw, _ = painter.first.generator(noise_BZ, given.sentence_BE)
            generated, condition = painter.second.generator(small_B3hw, given.sentence_BE)
            return self._losses(painter.second, given, given.real_B3HW, generated, condition, shares)
        generated, condition = painter.first.generator(noise_BZ, given.sentence_BE)
        real = F.interpolate(given.real_B3HW, size=config.first_size, mode="area")
        return self._losses(painter.first, given, real, generated, condition, shares)

    def _losses(
        self,
        stage: Stage,
        given: Material,
        real: Tensor,
        generated: Tensor,
        condition: Condition,
        shares: Shares,
    ) -> dict[str, Tensor]:
        judge, mean_BC = stage.discriminator, condition.mean_BC.detach()
        wrong = taken_for_false(judge(real, mean_BC.roll(1, 0)), given.differs_B)
        false = taken_for_false(judge(generated.detach(), mean_BC))
        total = taken_for_real(judge(real, mean_BC)) + (wrong + false) / 2
        with held(judge):
            believed = taken_for_real(judge(generated, mean_BC))
        config = self.model.painter.config
        spread_B = divergence(condition.mean_BC, condition.log_variance_BC) / config.condition
        losses = {
            "discriminator": total / shares.pictures,
            "generator": believed / shares.pictures,
            "divergence": config.divergence * spread_B.sum() / shares.pictures,
        }
        return {"loss": torch.stack(list(losses.values())).sum(), **losses}


def learns_second(stage: StageSettings) -> bool:
    """Whether a stage teaches the second generator. Raises ConfigError where it teaches both or none."""
    first, second = (highest_rate(stage, f"painter.{part}") > 0 for part in ("first", "second"))
    if first == second:
        raise ConfigError(
            f"stage {stage.name!r} teaches {'both stages' if first else 'neither stage'} of the stacked "
            "painter: give "
            'exactly one of "painter.first" and "painter.second" a learning rate above 0, the first one first'
        )
    return second


def _objective(model: PaintModel, special: SpecialIds, stage: StageSettings) -> nn.Module:
    check_text_is_held(stage)
    return StackGanLoss(model, special.pad, learns_second(stage))


def _optimisers(model: nn.Module, stage: StageSettings) -> tuple[torch.optim.Optimizer, ...]:
    part = "painter.second" if learns_second(stage) else "painter.first"
    return optimisers_of(f"{part}.generator", f"{part}.discriminator")(model, stage)


@torch.inference_mode()
def paint(model: PaintModel, told: Prompt, nothing: Prompt, wish: Wish) -> Tensor:
    """Pictures (B, 3, H, W) in [-1, 1] of texts, one for each seed."""
    sentence_BE = masked_mean(told.text.tokens_BLC, told.mask_BL)
    noise_BZ = noise_for(wish, model.painter.config.noise, sentence_BE.device)
    wish.watch()
    return model.painter.paint(noise_BZ, sentence_BE)


STACKED = Family(
    _objective,
    paint,
    check_wish,
    steps=None,
    optimisers=_optimisers,
    step=adversarial_step,
    selects=False,
)
