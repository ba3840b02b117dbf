"""What two towers minimise: the contrastive loss over the batches of all processes, with gradient, and a
captioner's loss beside it.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from patchword.composed import see
from patchword.data.captions import CaptionBatch
from patchword.decode import select_rows
from patchword.losses import caption_cross_entropy
from patchword.models.pairs.two_towers import (
    TwoTowers,
    same_class,
    sigmoid_loss,
    smoothed_softmax_loss,
    softmax_loss,
)
from patchword.train.gather import Gather
from patchword.train.step import Shares
from patchword.types import Captioner, VisualFeatures


class CaptioningWeights(NamedTuple):
    """How much captioning counts beside the contrastive loss, and how its targets are smoothed."""

    weight: float = 0.0
    label_smoothing: float = 0.0


_NO_CAPTIONING = CaptioningWeights()


class Pairs(NamedTuple):
    """Vectors of one process's pictures and texts, and what belongs together."""

    pictures_BE: Tensor
    texts_JE: Tensor
    owner_J: Tensor
    """The picture of each text."""
    class_J: Tensor
    """A number for the words of each text, the same for the same words; `owner_J` where nobody asks."""

    @classmethod
    def of(
        cls, pictures_BE: Tensor, texts_JE: Tensor, batches: Sequence[CaptionBatch], same_words: bool
    ) -> Pairs:
        """The vectors of these batches, one behind the other."""
        owners, classes, before = [], [], 0
        for batch in batches:
            owners.append(batch.picture_of_row_R + before)
            if same_words:
                rows = zip(batch.tokens_RT.tolist(), batch.lengths_R.tolist(), strict=True)
                classes += [_number_of(row[:length]) for row, length in rows]
            before += batch.picture_count
        owner_J = torch.cat(owners).to(pictures_BE.device)
        class_J = torch.tensor(classes, device=owner_J.device) if same_words else owner_J
        return cls(pictures_BE, texts_JE, owner_J, class_J)


def _number_of(ids: Sequence[int]) -> int:
    """The same in every process, unlike `hash` of texts."""
    digest = hashlib.blake2b(repr(tuple(ids)).encode(), digest_size=7).digest()
    return int.from_bytes(digest, "big")


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
        features = see(self.model.vision, batch.inputs)
        pictures_bE, texts_jE = self.model.pictures_of(features), self._texts(batch.tokens_RT)
        losses = self.compare(Pairs.of(pictures_bE, texts_jE, [batch], self.same_words), shares)
        loss = losses["contrast"]
        if self.captioner is not None:
            losses["cross_entropy"] = self._caption(self.captioner, features, batch) / shares.targets
            loss = loss + self.captioning.weight * losses["cross_entropy"]
        return {"loss": loss, **losses}

    @property
    def same_words(self) -> bool:
        """Whether the loss asks which texts are the same words."""
        return self.model.config.loss == "unicl"

    def embed(self, batch: CaptionBatch) -> tuple[Tensor, Tensor]:
        """Unit vectors of the pictures and of the texts of a batch."""
        features = see(self.model.vision, batch.inputs)
        return self.model.pictures_of(features), self._texts(batch.tokens_RT)

    def compare(self, pairs: Pairs, shares: Shares) -> dict[str, Tensor]:
        """The contrast of pairs with those of all processes."""
        gather, count = self.gather, len(pairs.pictures_BE)
        owner_J = gather.owners(pairs.owner_J, count)
        first = gather.first
        pictures_BE, texts_JE = gather.rows(pairs.pictures_BE), gather.rows(pairs.texts_JE)
        # Cosines times a scale of up to 100 come in steps of a half in bf16: they are taken in full
        # precision, under autocast too.
        with torch.autocast(pictures_BE.device.type, enabled=False):
            similarity_BJ = self.model.scale() * pictures_BE.float() @ texts_JE.float().T
        total = self._contrast(similarity_BJ, owner_J, slice(first, first + count), pairs)
        best_B = similarity_BJ[first : first + count].argmax(1)
        hits = (owner_J[best_B] == torch.arange(first, first + count, device=owner_J.device)).sum()
        return {"contrast": total / shares.pictures, "rank_1": hits / shares.pictures}

    def _contrast(self, similarity_BJ: Tensor, owner_J: Tensor, rows: slice, pairs: Pairs) -> Tensor:
        """The loss that the model's settings name, summed over the pictures of this process."""
        settings, count = self.model.config, rows.stop - rows.start
        if self.model.bias is not None:
            return sigmoid_loss(similarity_BJ + self.model.bias, owner_J, rows.start, count)
        if settings.loss == "softmax" and not settings.smoothing:
            return softmax_loss(similarity_BJ, owner_J, rows.start, count)
        class_J = owner_J if settings.loss == "softmax" else self.gather.rows(pairs.class_J)
        positive_BJ = same_class(owner_J, class_J, len(similarity_BJ))
        return smoothed_softmax_loss(similarity_BJ, positive_BJ, owner_J, rows, settings.smoothing)

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
