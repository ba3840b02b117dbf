"""Bottleneck adapters in a frozen tower (Houlsby 2019; in FSGR, Gao 2025, on the attention output of the last six blocks of CLIP).

Letters: B pictures, N tokens, C width.
"""

from __future__ import annotations

from torch import Tensor, nn
from torch.nn import functional as F

from patchword.layers.linear import Linear


class Adapter(nn.Module):
    """x + W2 GELU(W1 x), with W2 zero at first: at the start it changes nothing, bit for bit."""

    def __init__(self, width: int, bottleneck: int) -> None:
        super().__init__()
        self.down = Linear(width, bottleneck)
        self.up = Linear(bottleneck, width)
        nn.init.zeros_(self.up.weight)
        nn.init.zeros_(self.up.bias)

    def forward(self, x_BNC: Tensor) -> Tensor:
        return x_BNC + self.up(F.gelu(self.down(x_BNC)))
