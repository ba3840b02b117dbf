"""DF-GAN as a family of painters: its losses, and how it paints. Equations: `models/painters/df_gan.py`."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from patchword.data.captions import CaptionBatch
from patchword.ids import SpecialIds
from patchword.layers.features import masked_mean
from patchword.models.painters.df_gan import gradient_penalty
from patchword.tasks.paint.adversarial import (
    adversarial_step,
    check_text_is_held,
    check_wish,
    held,
    material,
    noise_for,
    optimisers_of,
)
from patchword.tasks.paint.composed import PaintModel, Prompt
from patchword.tasks.paint.families import Family, Wish
from patchword.train.settings import StageSettings
from patchword.train.step import Shares


class DfGanLoss(nn.Module):
    """Hinge losses of discriminator and generator, and the penalty on the discriminator's gradient."""

    def __init__(self, model: PaintModel, pad: int) -> None:
        super().__init__()
        self.model, self.pad = model, pad

    def forward(self, batch: CaptionBatch, shares: Shares) -> dict[str, Tensor]:
        """Named losses, the total under "loss". The penalty is computed while training only."""
        painter, given = self.model.painter, material(self.model, batch, self.pad)
        config, judge = painter.config, painter.discriminator
        noise_BZ = torch.randn(len(given.real_B3HW), config.noise, device=given.real_B3HW.device)
        generated = painter.generator(noise_BZ, given.sentence_BE)
        seen = judge.look(given.real_B3HW)
        real = F.relu(1 - judge.judge(seen, given.sentence_BE)).sum()
        wrong = (F.relu(1 + judge.judge(seen, given.wrong_BE)) * given.differs_B).sum()
        false = F.relu(1 + judge(generated.detach(), given.sentence_BE)).sum()
        losses = {"discriminator": (real + (false + wrong) / 2) / shares.pictures}
        with held(judge):
            losses["generator"] = -judge(generated, given.sentence_BE).sum() / shares.pictures
        if self.training and config.penalty:
            norms_B = gradient_penalty(judge, given.real_B3HW, given.sentence_BE, config.penalty_power)
            losses["penalty"] = config.penalty * norms_B.sum() / shares.pictures
        return {"loss": torch.stack(list(losses.values())).sum(), **losses}


def _objective(model: PaintModel, special: SpecialIds, stage: StageSettings) -> nn.Module:
    check_text_is_held(stage)
    return DfGanLoss(model, special.pad)


@torch.inference_mode()
def paint(model: PaintModel, told: Prompt, nothing: Prompt, wish: Wish) -> Tensor:
    """Pictures (B, 3, H, W) in [-1, 1] of texts, one for each seed."""
    config = model.painter.config
    sentence_BE = masked_mean(told.text.tokens_BLC, told.mask_BL)
    noise_BZ = noise_for(wish, config.noise, sentence_BE.device, config.truncation)
    wish.watch()
    return model.painter.paint(noise_BZ, sentence_BE)


DEEP_FUSION = Family(
    _objective,
    paint,
    check_wish,
    steps=None,
    optimisers=optimisers_of("painter.generator", "painter.discriminator"),
    step=adversarial_step,
    selects=False,
)
