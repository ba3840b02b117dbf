"""What two towers minimise: the contrastive loss over the batches of all processes, with gradient, and a
captioner's loss beside it.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from patchword.composed import see
from patchword.data.captions import CaptionBatch
from patchword.decode import select_rows
from patchword.losses import caption_cross_entropy
from patchword.models.pairs.two_towers import TwoTowers, sigmoid_loss, softmax_loss
from patchword.train.gather import Gather
from patchword.train.step import Shares
from patchword.types import Captioner, VisualFeatures


class CaptioningWeights(NamedTuple):
    """How much captioning counts beside the contrastive loss, and how its targets are smoothed."""

    weight: float = 0.0
    label_smoothing: float = 0.0


_NO_CAPTIONING = CaptioningWeights()


class FrozenTexts:
    """What a frozen text tower makes of each text, computed the first time that the text comes (4 C bytes a
    text).
    """

    def __init__(self, model: TwoTowers, pad: int) -> None:
        self._model, self._pad = model, pad
        self._known: dict[bytes, Tensor] = {}

    @torch.no_grad()
    def means(self, tokens_JT: Tensor) -> Tensor:
        """The vectors (J, C) before the text projection."""
        # The key is the text without padding, so that a text is the same in every batch.
        keys = [row[row != self._pad].cpu().numpy().tobytes() for row in tokens_JT]
        fresh = [place for place, key in enumerate(keys) if key not in self._known]
        if fresh:
            ids_KT = tokens_JT[fresh]
            found_KC = self._model.mean_text(self._model.text(ids_KT, ids_KT != self._pad)).float()
            self._known.update({keys[place]: mean_C for place, mean_C in zip(fresh, found_KC, strict=True)})
        return torch.stack([self._known[key] for key in keys]).to(tokens_JT.device)


class ContrastiveObjective(nn.Module):
    """Every process embeds its own pictures and texts; similarities are taken with those of all processes.

    Each process computes the loss of its own pictures against the texts of all. Embeddings are gathered with
    gradient, so the gradient of the processes' mean is that of one process with the whole batch.
    """

    def __init__(
        self,
        model: TwoTowers,
        pad: int,
        gather: Gather,
        captioner: Captioner | None = None,
        captioning: CaptioningWeights = _NO_CAPTIONING,
    ) -> None:
        """`captioner` reads the vision tower's grid and learns to say the same captions (CoCa, Yu 2022);
        None: contrast alone.
        """
        super().__init__()
        self.model, self.pad, self.gather = model, pad, gather
        self.captioner, self.captioning = captioner, captioning
        frozen = not any(parameter.requires_grad for parameter in model.text.parameters())
        self.frozen_texts = FrozenTexts(model, pad) if frozen else None

    def forward(self, batch: CaptionBatch, shares: Shares) -> dict[str, Tensor]:
        """Named losses, the total under "loss"; "rank_1" is the share of pictures whose best text is one of
        their own.
        """
        gather, count = self.gather, batch.picture_count
        owner_J = gather.owners(batch.picture_of_row_R, count)
        first = gather.first
        features = see(self.model.vision, batch.inputs)
        pictures_BE = gather.rows(self.model.pictures_of(features))
        texts_JE = gather.rows(self._texts(batch.tokens_RT))
        # Cosines times a scale of up to 100 come in steps of a half in bf16: they are taken in full
        # precision, under autocast too.
        with torch.autocast(pictures_BE.device.type, enabled=False):
            similarity_BJ = self.model.scale() * pictures_BE.float() @ texts_JE.float().T
        if self.model.bias is None:
            total = softmax_loss(similarity_BJ, owner_J, first, count)
        else:
            total = sigmoid_loss(similarity_BJ + self.model.bias, owner_J, first, count)
        best_B = similarity_BJ[first : first + count].argmax(1)
        hits = (owner_J[best_B] == torch.arange(first, first + count, device=owner_J.device)).sum()
        losses = {"contrast": total / shares.pictures, "rank_1": hits / shares.pictures}
        loss = losses["contrast"]
        if self.captioner is not None:
            losses["cross_entropy"] = self._caption(self.captioner, features, batch) / shares.targets
            loss = loss + self.captioning.weight * losses["cross_entropy"]
        return {"loss": loss, **losses}

    def _texts(self, tokens_RT: Tensor) -> Tensor:
        if self.frozen_texts is None:
            return self.model.embed_texts(tokens_RT, tokens_RT != self.pad)
        return F.normalize(self.model.project_texts(self.frozen_texts.means(tokens_RT)), dim=-1)

    def _caption(self, captioner: Captioner, features: VisualFeatures, batch: CaptionBatch) -> Tensor:
        """Sum of the cross-entropy of the batch's words under teacher forcing."""
        memory = select_rows(captioner.encode(features), batch.picture_of_row_R)
        decoded = captioner.decode(batch.tokens_RT[:, :-1], batch.lengths_R - 1, memory)
        return caption_cross_entropy(
            decoded.logits_BTV, batch.tokens_RT[:, 1:], self.pad, self.captioning.label_smoothing
        )[0]
