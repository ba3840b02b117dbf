"""Bottleneck adapters in a frozen tower (Houlsby 2019).

FSGR (Gao 2025) puts them on the attention output of the last six blocks of CLIP.

Shape legend: B pictures, N tokens, C width.
"""

from __future__ import annotations

from torch import Tensor, nn
from torch.nn import functional as F

from patchword.layers.linear import Linear


class Adapter(nn.Module):
    """x + W2 GELU(W1 x). W2 starts at zero, so an untrained adapter changes nothing, bit for bit."""

    def __init__(self, width: int, bottleneck: int) -> None:
        super().__init__()
        self.down = Linear(width, bottleneck)
        self.up = Linear(bottleneck, width)
        nn.init.zeros_(self.up.weight)
        nn.init.zeros_(self.up.bias)

    def forward(self, x_BNC: Tensor) -> Tensor:
        """Returns the adapted tokens, (B, N, C)."""
        return x_BNC + self.up(F.gelu(self.down(x_BNC)))
