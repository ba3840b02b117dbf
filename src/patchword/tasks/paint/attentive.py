"""AttnGAN as a family of painters: its losses, and how it paints. Equations: `models/painters/attn_gan.py`.

A stage of the training teaches what has a learning rate: "painter.matching" (and the text tower with it,
where it has one too), and after it generator and discriminator, with the matching model held.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from patchword.data.captions import CaptionBatch
from patchword.errors import ConfigError
from patchword.ids import SpecialIds
from patchword.layers.features import masked_mean
from patchword.layers.gaussian import divergence
from patchword.tasks.paint.adversarial import (
    adversarial_step,
    check_text_is_held,
    check_wish,
    held,
    material,
    noise_for,
    optimisers_of,
    pixels_of,
    taken_for_false,
    taken_for_real,
)
from patchword.tasks.paint.composed import PaintModel, Prompt
from patchword.tasks.paint.families import Family, Wish
from patchword.train.groups import build_optimiser, highest_rate
from patchword.train.settings import StageSettings
from patchword.train.step import Shares


class MatchingLoss(nn.Module):
    """DAMSM: words find their regions, pictures their texts."""

    def __init__(self, model: PaintModel, pad: int) -> None:
        super().__init__()
        self.model, self.pad = model, pad

    def forward(self, batch: CaptionBatch, shares: Shares) -> dict[str, Tensor]:
        """The loss; a mean over the batch, whose texts are told apart within it."""
        told = self.model.tell(batch.tokens_RT, self.pad)
        tokens_BLE, matching = told.text.tokens_BLC, self.model.painter.matching
        words_BLD, sentence_BD = matching.read(tokens_BLE, masked_mean(tokens_BLE, told.mask_BL))
        same_BB = (told.ids_BL[:, None] == told.ids_BL[None]).all(-1)
        loss = matching.loss(pixels_of(batch), words_BLD, sentence_BD, told.mask_BL, same_BB)
        return {"loss": loss * (len(tokens_BLE) / shares.pictures)}


class AttnGanLoss(nn.Module):
    """Losses of all discriminators and generators, of matching, and of the condition's divergence."""

    def __init__(self, model: PaintModel, pad: int) -> None:
        super().__init__()
        self.model, self.pad = model, pad

    def forward(self, batch: CaptionBatch, shares: Shares) -> dict[str, Tensor]:
        """Named losses, the total under "loss"."""
        painter, given = self.model.painter, material(self.model, batch, self.pad)
        config, count = painter.config, len(given.real_B3HW)
        with torch.no_grad():
            words_BLD, sentence_BD = painter.matching.read(given.tokens_BLE, given.sentence_BE)
        noise_BZ = torch.randn(count, config.noise, device=sentence_BD.device)
        painted = painter.generator(noise_BZ, sentence_BD, words_BLD, given.mask_BL)
        judged, believed = [], []
        for judge, generated in zip(painter.discriminator, painted.pictures, strict=True):
            real = F.interpolate(given.real_B3HW, size=generated.shape[-1], mode="area")
            judged.append(_judged(judge, real, generated.detach(), sentence_BD, given.differs_B))
            with held(judge):
                alone_B, with_sentence_B = judge(generated, sentence_BD)
            believed.append(taken_for_real(alone_B) + taken_for_real(with_sentence_B))
        same_BB = (given.ids_BL[:, None] == given.ids_BL[None]).all(-1)
        with held(painter.matching):
            matching = painter.matching.loss(
                painted.pictures[-1], words_BLD, sentence_BD, given.mask_BL, same_BB
            )
        condition = painted.condition
        spread_B = divergence(condition.mean_BC, condition.log_variance_BC) / config.condition
        losses = {
            "discriminator": torch.stack(judged).sum() / shares.pictures,
            "generator": torch.stack(believed).sum() / shares.pictures,
            "matching": config.matching * matching * (count / shares.pictures),
            "divergence": config.divergence * spread_B.sum() / shares.pictures,
        }
        return {"loss": torch.stack(list(losses.values())).sum(), **losses}


def _judged(
    judge: nn.Module, real: Tensor, generated: Tensor, sentence_BD: Tensor, differs_B: Tensor
) -> Tensor:
    """The discriminator's loss at one size, summed over the pictures."""
    real_alone_B, real_with_B = judge(real, sentence_BD)
    false_alone_B, false_with_B = judge(generated, sentence_BD)
    _, wrong_B = judge(real, sentence_BD.roll(1, 0))
    false = (
        taken_for_false(false_alone_B) + taken_for_false(false_with_B) + taken_for_false(wrong_B, differs_B)
    )
    return (taken_for_real(real_alone_B) + taken_for_real(real_with_B)) / 2 + false / 3


def learns_matching(stage: StageSettings) -> bool:
    """Whether a stage teaches the matching model. Raises ConfigError where it teaches everything or
    nothing.
    """
    matching, generator = (highest_rate(stage, f"painter.{part}") > 0 for part in ("matching", "generator"))
    if matching == generator:
        raise ConfigError(
            f"stage {stage.name!r} teaches {'both' if matching else 'neither'} of the matching model and the "
            'generator: give exactly one of "painter.matching" and "painter.generator" a learning rate '
            "above 0, the "
            "matching model first"
        )
    return matching


def _objective(model: PaintModel, special: SpecialIds, stage: StageSettings) -> nn.Module:
    if learns_matching(stage):
        return MatchingLoss(model, special.pad)
    check_text_is_held(stage)
    return AttnGanLoss(model, special.pad)


def _optimisers(model: nn.Module, stage: StageSettings) -> tuple[torch.optim.Optimizer, ...]:
    if learns_matching(stage):
        return (build_optimiser(model, stage),)
    return optimisers_of("painter.generator", "painter.discriminator")(model, stage)


@torch.inference_mode()
def paint(model: PaintModel, told: Prompt, nothing: Prompt, wish: Wish) -> Tensor:
    """Pictures (B, 3, H, W) in [-1, 1] of texts, one for each seed."""
    tokens_BLE, config = told.text.tokens_BLC, model.painter.config
    noise_BZ = noise_for(wish, config.noise, tokens_BLE.device)
    sentence_BE = masked_mean(tokens_BLE, told.mask_BL)
    painted = model.painter.paint(noise_BZ, tokens_BLE, sentence_BE, told.mask_BL)
    wish.watch()
    if wish.maps is not None and painted.weights:
        weights_BNL = painted.weights[-1]
        side = int(weights_BNL.shape[1] ** 0.5)
        wish.maps.append(weights_BNL.unflatten(1, (side, side)))
    return painted.pictures[-1]


ATTENTIVE = Family(
    _objective,
    paint,
    check_wish,
    steps=None,
    optimisers=_optimisers,
    step=adversarial_step,
    selects=False,
)
