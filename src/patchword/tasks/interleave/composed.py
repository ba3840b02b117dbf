"""A tower, a frozen language model, and what joins them."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from patchword.composed import TowerModel
from patchword.data.captions import Inputs
from patchword.models.captioners.flamingo import Flamingo, FlamingoConfig, next_token_loss
from patchword.tasks.interleave.data import DocumentBatch
from patchword.towers.language import CausalLanguage
from patchword.towers.settings import LanguageConfig
from patchword.train.step import Shares


class FewShotModule(TowerModel):
    """The tower and the few-shot model over it."""

    def __init__(self, tower: nn.Module, flamingo: Flamingo) -> None:
        super().__init__(tower)
        self.flamingo = flamingo

    @classmethod
    def over(cls, tower: Any, language: LanguageConfig, flamingo: FlamingoConfig) -> FewShotModule:
        """Over a tower that is there."""
        return cls(tower, Flamingo(flamingo, CausalLanguage(language), tower.width))

    def latents(self, inputs: Inputs) -> Tensor:
        """What the resampler makes of pictures, (P, R, W)."""
        return self.flamingo.look(self.features(inputs).grid_BNC)


class InterleaveObjective(nn.Module):
    """The cross-entropy of all texts, given what stands before them."""

    def __init__(self, model: FewShotModule, pictures: bool) -> None:
        """`pictures`: whether they are looked at."""
        super().__init__()
        self.model, self.pictures = model, pictures

    def forward(self, batch: DocumentBatch, shares: Shares) -> dict[str, Tensor]:
        """The loss under "loss"."""
        total, _ = self.summed(batch)
        return {"loss": total / shares.targets}

    def summed(self, batch: DocumentBatch) -> tuple[Tensor, Tensor]:
        """Sum of -log p over the tokens of the texts, and their number."""
        flamingo, media = self.model.flamingo, None
        if self.pictures:
            latents_PRW = self.model.latents(batch.inputs)
            media = flamingo.remember(latents_PRW[batch.pictures_BM])
        logits_BTV = flamingo(batch.ids_BT, media)
        return next_token_loss(logits_BTV, batch.ids_BT, batch.counted_BT)


def without_gradient(module: InterleaveObjective, batch: DocumentBatch) -> tuple[float, int]:
    """The same as numbers, in evaluation mode."""
    module.eval()
    with torch.inference_mode():
        total, count = module.summed(batch)
    return float(total), int(count)
