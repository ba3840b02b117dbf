"""A painter and the text tower that it is told by."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from patchword.ids import SpecialIds
from patchword.types import TextFeatures


class Prompt(NamedTuple):
    """Texts as ids with start, end and padding, and what the text tower makes of them."""

    ids_BL: Tensor
    mask_BL: Tensor
    text: TextFeatures
    """What the text tower gives; its width is 0 for a painter that reads the words itself."""
    sentence_BE: Tensor | None = None
    """Unit vectors in the space of two towers; None where the painter works in no such space."""


class PaintModel(nn.Module):
    """A text tower, frozen or not, and the painter that reads it.

    A painter that works in the space of two towers has both of them, frozen, in place of the text tower; one
    that reads the words itself has neither.
    """

    def __init__(
        self,
        text: Any,
        painter: Any,
        towers: Any = None,
        codec: Any = None,
    ) -> None:
        """`codec`: turns pictures into the latents that the painter works on, and back."""
        super().__init__()
        self.painter, self.towers, self.codec = painter, towers, codec
        if towers is None:
            self.text = text
        else:
            towers.requires_grad_(False)

    @property
    def text_tower(self) -> Any:
        """What reads the texts; None where the painter does."""
        return self.text if self.towers is None else self.towers.text

    @property
    def text_is_frozen(self) -> bool:
        tower = self.text_tower
        return tower is not None and not any(one.requires_grad for one in tower.parameters())

    def train(self, mode: bool = True) -> PaintModel:
        """Sets the mode, as `nn.Module.train` does; frozen towers stay in evaluation mode."""
        super().train(mode)
        if self.text_is_frozen:
            (self.text_tower if self.towers is None else self.towers).eval()
        return self

    def tell(self, ids_BL: Tensor, pad: int) -> Prompt:
        """What the text tower makes of texts; without gradient where it is frozen."""
        mask_BL = ids_BL != pad
        tower = self.text_tower
        if tower is None:
            return Prompt(ids_BL, mask_BL, TextFeatures(torch.zeros(*ids_BL.shape, 0, device=ids_BL.device)))
        with torch.set_grad_enabled(torch.is_grad_enabled() and not self.text_is_frozen):
            features = tower(ids_BL, mask_BL)
            if self.towers is None:
                return Prompt(ids_BL, mask_BL, features)
            return Prompt(ids_BL, mask_BL, features, F.normalize(self.towers.pool_text(features), dim=-1))

    @torch.no_grad()
    def see(self, pictures_B3HW: Tensor) -> Tensor:
        """Embeddings of pictures in [-1, 1] in the space of the two towers, unit vectors (B, E)."""
        prepared = self.towers.vision.preprocessing
        side = (prepared.size, prepared.size)
        pixels = F.interpolate(pictures_B3HW, side, mode="bilinear", antialias=True, align_corners=False)
        mean, std = (pixels.new_tensor(values).view(1, 3, 1, 1) for values in (prepared.mean, prepared.std))
        return self.towers.embed_pictures((pixels.clamp(-1, 1) / 2 + 0.5 - mean) / std)


def emptied(ids_BL: Tensor, special: SpecialIds, dropped_B: Tensor) -> Tensor:
    """Ids in which the dropped rows are the empty text: start, end, padding."""
    nothing_L = torch.full_like(ids_BL[0], special.pad)
    nothing_L[0], nothing_L[1] = special.start, special.end
    return torch.where(dropped_B[:, None], nothing_L, ids_BL)


def padded_ids(rows: Sequence[Sequence[int]], special: SpecialIds, device: torch.device) -> Tensor:
    """Texts as ids (B, longest) with start, end and padding."""
    ids_BL = torch.full((len(rows), 2 + max(map(len, rows), default=0)), special.pad)
    for b, row in enumerate(rows):
        ids_BL[b, : len(row) + 2] = torch.tensor([special.start, *row, special.end])
    return ids_BL.to(device)
