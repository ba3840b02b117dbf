"""GAN-INT-CLS as a family of painters: its losses, and how it paints. Equations:
`models/painters/conditional_gan.py`.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from patchword.data.captions import CaptionBatch
from patchword.ids import SpecialIds
from patchword.layers.features import masked_mean
from patchword.tasks.paint.adversarial import (
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
from patchword.train.settings import StageSettings
from patchword.train.step import Shares


class ConditionalGanLoss(nn.Module):
    """Cross-entropies of discriminator and generator."""

    def __init__(self, model: PaintModel, pad: int) -> None:
        super().__init__()
        self.model, self.pad = model, pad

    def forward(self, batch: CaptionBatch, shares: Shares) -> dict[str, Tensor]:
        """Named losses, the total under "loss"."""
        painter, given = self.model.painter, material(self.model, batch, self.pad)
        config, judge = painter.config, painter.discriminator
        count = len(given.real_B3HW)
        asked = given.sentence_BE
        if config.interpolated and self.training:
            half = count // 2
            asked = torch.cat([asked, (asked[:half] + asked[half : 2 * half]) / 2])
        generated = painter.generator(torch.randn(len(asked), config.noise, device=asked.device), asked)
        false = taken_for_false(judge(generated[:count].detach(), given.sentence_BE))
        if config.matching_aware:
            wrong = taken_for_false(judge(given.real_B3HW, given.wrong_BE), given.differs_B)
            false = (wrong + false) / 2
        losses = {
            "discriminator": (taken_for_real(judge(given.real_B3HW, given.sentence_BE)) + false)
            / shares.pictures
        }
        with held(judge):
            believed = taken_for_real(judge(generated, asked))
        losses["generator"] = believed * (count / len(asked)) / shares.pictures
        return {"loss": losses["discriminator"] + losses["generator"], **losses}


def _objective(model: PaintModel, special: SpecialIds, stage: StageSettings) -> nn.Module:
    check_text_is_held(stage)
    return ConditionalGanLoss(model, special.pad)


@torch.inference_mode()
def paint(model: PaintModel, told: Prompt, nothing: Prompt, wish: Wish) -> Tensor:
    """Pictures (B, 3, H, W) in [-1, 1] of texts, one for each seed."""
    sentence_BE = masked_mean(told.text.tokens_BLC, told.mask_BL)
    noise_BZ = noise_for(wish, model.painter.config.noise, sentence_BE.device)
    wish.watch()
    return model.painter.paint(noise_BZ, sentence_BE)


CONDITIONAL = Family(
    _objective,
    paint,
    check_wish,
    steps=None,
    optimisers=optimisers_of("painter.generator", "painter.discriminator"),
    step=adversarial_step,
    selects=False,
)
