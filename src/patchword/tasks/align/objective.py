"""The objective of patch-word alignment: a loss of the similarities of all pictures and captions of a batch.

The batch spans all processes. The loss is LAPS' hinge with hard negatives (Fu 2024; Faghri 2018), or InfoNCE
over the same similarities. Either can be combined with the ratio loss of the paper variant, and with the
towers' own contrastive loss, which keeps their shortlists good.

Shape legend: that of `patchword.types`; b pictures of this process, J captions of all processes, P tokens of
a picture, d their width.
"""

from __future__ import annotations

from typing import Annotated, Literal

import torch
from pydantic import BaseModel, Field
from torch import Tensor, nn

from patchword.composed import see
from patchword.data.captions import CaptionBatch, Inputs
from patchword.losses import hinge_loss, ratio_loss, warm_up
from patchword.models.pairs.aligned_towers import AlignedTowers
from patchword.models.pairs.two_towers import softmax_loss
from patchword.train.gather import Gather
from patchword.train.step import Shares
from patchword.types import VisualFeatures


class _Weights(BaseModel, extra="forbid", frozen=True):
    """Weights of the additional losses."""

    ratio_weight: float = Field(2.0, ge=0, description="paper variant: weight of (share kept - rho)^2")
    contrastive_weight: float = Field(
        0.0, ge=0, description="weight of the two towers' own InfoNCE, beside that of the head"
    )


class HingeSettings(_Weights, frozen=True):
    """The hinge loss of LAPS."""

    kind: Literal["hinge"] = "hinge"
    margin: float = Field(
        0.2,
        gt=0,
        description="by which a pair beats the others, in the unit of the similarity (about -0.2 to 2)",
    )
    warm_up_epochs: float = Field(
        1.0, ge=0, description="epochs over which the weight of the loss rises from 0 to 1"
    )
    all_negatives_epochs: float = Field(
        1.0, ge=0, description="epochs with all negatives; then only the hardest of each caption"
    )


class InfoNceSettings(_Weights, frozen=True):
    """A softmax over the similarities, in both directions."""

    kind: Literal["infonce"] = "infonce"
    scale: float = Field(
        20.0, gt=0, description="factor on the similarities before the softmax (inverse temperature)"
    )


AlignmentLoss = Annotated[HingeSettings | InfoNceSettings, Field(discriminator="kind")]


def visual_features(model: AlignedTowers, inputs: Inputs) -> VisualFeatures:
    """Returns the features of the vision tower; see `composed.see`."""
    return see(model.towers.vision, inputs)


class Alignment(nn.Module):
    """The objective that owns the model.

    Every process compares its own pictures with the captions of all processes, and the rows of similarities
    are then gathered. Captions and rows are gathered with gradients, so the mean gradient of the processes
    equals that of one process with the whole batch, and no pair is compared twice.
    """

    def __init__(
        self, model: AlignedTowers, settings: HingeSettings | InfoNceSettings, epochs: int, gather: Gather
    ) -> None:
        super().__init__()
        self.model, self.settings, self.epochs, self.gather = model, settings, epochs, gather

    def forward(self, batch: CaptionBatch, shares: Shares) -> dict[str, Tensor]:
        """Returns named losses with the total under "loss".

        "rank_1" is the share of pictures whose best caption is one of their own.
        """
        model, settings, gather = self.model, self.settings, self.gather
        pictures = model.look(visual_features(model, batch.inputs))
        mask_RT = (
            torch.arange(batch.tokens_RT.shape[1], device=batch.lengths_R.device) < batch.lengths_R[:, None]
        )
        texts = model.read(batch.tokens_RT, mask_RT)
        owner_J, lengths_J, first = (
            gather.owners(batch.picture_of_row_R, batch.picture_count),
            gather.rows(batch.lengths_R),
            gather.first,
        )
        images = model.head.images(pictures.tokens, model.class_token)
        captions = model.head.captions(gather.padded_rows(texts.tokens), lengths_J)
        # The selection is always made in float32. The products of words and patches, most of the work, follow
        # the precision of the training.
        half = torch.is_autocast_enabled(pictures.tokens.device.type)
        aligned = model.head.align(images, captions, product_dtype=torch.bfloat16 if half else torch.float32)
        similarities_IJ = gather.rows(aligned.similarities_IJ)
        total = shares.pictures * gather.processes
        losses = {"align": self._loss(similarities_IJ, owner_J, shares.progress * self.epochs) / total}
        loss = losses["align"]
        if model.head.config.variant == "paper" and settings.ratio_weight:
            losses["ratio"] = (
                ratio_loss(aligned.keep_IJN, model.head.config.keep) * batch.picture_count / shares.pictures
            )
            loss = loss + settings.ratio_weight * losses["ratio"]
        if settings.contrastive_weight:
            cosines_IJ = gather.rows(pictures.vectors) @ gather.rows(texts.vectors).T
            scaled_IJ = model.towers.scale() * cosines_IJ
            losses["contrastive"] = softmax_loss(scaled_IJ, owner_J, 0, len(scaled_IJ)) / total
            loss = loss + settings.contrastive_weight * losses["contrastive"]
        hits = owner_J[aligned.similarities_IJ.argmax(1)] == torch.arange(
            first, first + batch.picture_count, device=owner_J.device
        )
        return {"loss": loss, **losses, "rank_1": hits.sum() / shares.pictures}

    def _loss(self, similarities_IJ: Tensor, owner_J: Tensor, epochs_done: float) -> Tensor:
        """Sums the loss over the pictures; the captions of a picture share its weight of one."""
        settings = self.settings
        if isinstance(settings, InfoNceSettings):
            return softmax_loss(settings.scale * similarities_IJ, owner_J, 0, len(similarities_IJ))
        hardest = epochs_done >= settings.all_negatives_epochs
        captions_per_picture = len(owner_J) / len(similarities_IJ)
        factor = warm_up(epochs_done, settings.warm_up_epochs) / captions_per_picture
        return factor * hinge_loss(similarities_IJ, owner_J, settings.margin, hardest)
