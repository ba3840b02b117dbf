"""Bottleneck adapters in a frozen tower (Houlsby 2019; in FSGR, Gao 2025, on the attention output of the last six blocks of CLIP).

Letters: B pictures, N tokens, C width.
"""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor, nn
from torch.nn import functional as F


class Adapter(nn.Module):
    """x + W2 GELU(W1 x), with W2 zero at first: at the start it changes nothing, bit for bit."""

    def __init__(self, width: int, bottleneck: int) -> None:
        super().__init__()
        self.down = nn.Linear(width, bottleneck)
        self.up = nn.Linear(bottleneck, width)
        nn.init.zeros_(self.up.weight)
        nn.init.zeros_(self.up.bias)

    def forward(self, x_BNC: Tensor) -> Tensor:
        return x_BNC + self.up(F.gelu(self.down(x_BNC)))


class AdaptedLinear(nn.Module):
    """A projection of a tower with an adapter behind it. The projection keeps whether it is trained."""

    def __init__(self, projection: nn.Linear, bottleneck: int) -> None:
        super().__init__()
        self.projection = projection
        self.adapter = Adapter(projection.out_features, bottleneck).to(projection.weight)

    def forward(self, x_BNC: Tensor) -> Tensor:
        return self.adapter(self.projection(x_BNC))


def insert_adapters(attentions: Sequence[nn.Module], bottleneck: int) -> list[Adapter]:
    """Puts an adapter behind `out_proj` of each of these attention modules (as transformers' CLIP names it) and returns the adapters."""
    for attention in attentions:
        attention.out_proj = AdaptedLinear(attention.out_proj, bottleneck)
    return [attention.out_proj.adapter for attention in attentions]
