"""What a labelling model minimises: cross-entropy, or binary cross-entropy where a row may have several
labels.
"""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn

from patchword.data.labels import LabelBatch
from patchword.models.fusion.late_concatenation import LateConcatenation
from patchword.models.fusion.prompt_fusion import FusionTokens, PromptFusion, label_loss
from patchword.train.step import Shares

LabelModel = PromptFusion | LateConcatenation


def lower_of(model: LabelModel, batch: LabelBatch, stored_before_last: int) -> Any:
    """What the model's `fuse` reads: from pixels and ids, or from tokens that the last `stored_before_last`
    layers have not seen yet.
    """
    if batch.tokens is None:
        return model.lower(*batch.pixels_and_ids(), None, batch.mask_BL)
    if isinstance(model, LateConcatenation):
        return model.resume(*batch.tokens, stored_before_last)
    return FusionTokens(*batch.tokens)


class LabelObjective(nn.Module):
    """A labelling model and its loss."""

    def __init__(self, model: LabelModel, several: bool, stored_before_last: int) -> None:
        super().__init__()
        self.model, self.several, self.stored_before_last = model, several, stored_before_last

    def forward(self, batch: LabelBatch, shares: Shares) -> dict[str, Tensor]:
        """Named losses, the total under "loss"."""
        lower = lower_of(self.model, batch, self.stored_before_last)
        return labelled(
            self.model.fuse(lower, batch.has_image_B, batch.has_text_B), batch, self.several, shares
        )


def labelled(logits_BY: Tensor, batch: LabelBatch, several: bool, shares: Shares) -> dict[str, Tensor]:
    """The loss of a part of a step; for single labels also the share of rows that are right."""
    losses = {
        "loss": label_loss(logits_BY.float(), batch.labels, several) * len(batch.labels) / shares.pictures
    }
    if not several:
        losses["accuracy"] = (logits_BY.argmax(1) == batch.labels).sum() / shares.pictures
    return losses
