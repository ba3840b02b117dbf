"""What is hidden from a model that is pre-trained by filling gaps: blocks of patches and spans of words.

Blocks: Bao et al. 2022 (BEiT, arXiv 2106.08254, algorithm 1). Spans: Joshi et al. 2020 (SpanBERT).

Shape legend: see `patchword.types`. Masks are True at what is hidden.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

_ASPECT = 0.3
"""The sides of a block are in a ratio between this and its inverse."""


def block_masks(
    count: int, hw: tuple[int, int], share: float, smallest: int, generator: torch.Generator
) -> Tensor:
    """Hides round(share * rows * columns) patches of each of `count` grids, in blocks of at least `smallest`
    patches; returns (count, N).

    The last block is cut to the exact number, so that every picture hides equally many.
    """
    rows, columns = hw
    wanted = max(1, round(share * rows * columns))
    masks_BN = torch.zeros(count, rows * columns, dtype=torch.bool)
    for mask_N in masks_BN:
        mask_hw = mask_N.view(rows, columns)
        while (left := wanted - int(mask_N.sum())) > 0:
            least = min(smallest, left)
            area = least + (max(left, least) - least) * float(torch.rand((), generator=generator))
            low = math.log(_ASPECT)
            aspect = math.exp(low - 2 * low * float(torch.rand((), generator=generator)))
            height = min(rows, max(1, round(math.sqrt(area * aspect))))
            width = min(columns, max(1, round(math.sqrt(area / aspect))))
            top = int(torch.randint(rows - height + 1, (), generator=generator))
            first = int(torch.randint(columns - width + 1, (), generator=generator))
            block = torch.zeros(rows, columns, dtype=torch.bool)
            block[top : top + height, first : first + width] = True
            fresh = torch.nonzero((block & ~mask_hw).flatten()).flatten()
            mask_N[fresh[:left]] = True
    return masks_BN


def span_masks(real_BL: Tensor, share: float, span: int, generator: torch.Generator) -> Tensor:
    """Hides about `share` of the real tokens of each text, in spans of `span` tokens; returns (B, L).

    At least one token of each text that has any is hidden, and never a padding. Spans may overlap, so the
    starts are drawn with probability share / span at each token.
    """
    starts_BL = (torch.rand(real_BL.shape, generator=generator) < share / span) & real_BL
    masks_BL = starts_BL.clone()
    for shift in range(1, span):
        masks_BL[:, shift:] |= starts_BL[:, :-shift]
    masks_BL &= real_BL
    for mask_L, real_L in zip(masks_BL, real_BL, strict=True):
        places = torch.nonzero(real_L).flatten()
        if len(places) and not mask_L.any():
            mask_L[places[int(torch.randint(len(places), (), generator=generator))]] = True
    return masks_BL
