"""What models take from the features of a picture or a text: the grid, checked, and the mean of its real
tokens.

Shape legend: see `patchword.types`.
"""

from __future__ import annotations

from torch import Tensor

from patchword.errors import ModelError
from patchword.types import VisualFeatures


def grid_of(features: VisualFeatures, width: int) -> Tensor:
    """Returns the grid (B, N, C).

    Raises ModelError where C is not the width that the captioner was built for.
    """
    found = features.grid_BNC.shape[-1]
    if found != width:
        raise ModelError(
            f"the picture features are {found} wide and this captioner was built for {width}: "
            f"use the tower that it was trained with, or build it with feature_width={found}"
        )
    return features.grid_BNC


def masked_mean(tokens_BNC: Tensor, mask_BN: Tensor | None) -> Tensor:
    """Returns the mean of the real tokens, patches or words, (B, C); None means that all are real."""
    if mask_BN is None:
        return tokens_BNC.mean(dim=1)
    real_BN1 = mask_BN[..., None].to(tokens_BNC.dtype)
    return (tokens_BNC * real_BN1).sum(1) / real_BN1.sum(1).clamp(min=1)
