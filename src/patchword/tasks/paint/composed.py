"""A painter and the text tower that it is told by."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor, nn

from patchword.ids import SpecialIds
from patchword.types import TextFeatures


class Told(NamedTuple):
    """Texts as ids with start, end and padding, and what the text tower makes of them."""

    ids_BL: Tensor
    mask_BL: Tensor
    text: TextFeatures


class PaintModel(nn.Module):
    """A text tower, frozen or not, and the painter that reads it."""

    def __init__(self, text: nn.Module, painter: nn.Module) -> None:
        super().__init__()
        self.text, self.painter = text, painter

    @property
    def text_is_frozen(self) -> bool:
        return not any(parameter.requires_grad for parameter in self.text.parameters())

    def train(self, mode: bool = True) -> PaintModel:
        """As `nn.Module.train`; a frozen text tower stays in evaluation mode."""
        super().train(mode)
        if self.text_is_frozen:
            self.text.eval()
        return self

    def tell(self, ids_BL: Tensor, pad: int) -> Told:
        """What the text tower makes of texts; without gradient where it is frozen."""
        mask_BL = ids_BL != pad
        with torch.set_grad_enabled(torch.is_grad_enabled() and not self.text_is_frozen):
            return Told(ids_BL, mask_BL, self.text(ids_BL, mask_BL))


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
