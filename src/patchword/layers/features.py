"""The inputs that recurrent captioners take from picture features: the checked grid and its mean.

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


def mean_of_grid(grid_BNC: Tensor, mask_BN: Tensor | None) -> Tensor:
    """Returns the mean of the real patches, (B, C)."""
    if mask_BN is None:
        return grid_BNC.mean(dim=1)
    shares_B1N = (mask_BN / mask_BN.sum(dim=1, keepdim=True)).to(grid_BNC.dtype).unsqueeze(1)
    return (shares_B1N @ grid_BNC).squeeze(1)
