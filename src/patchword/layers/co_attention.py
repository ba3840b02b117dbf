"""Co-attention of two streams: each asks the other (Lu et al. 2019, ViLBERT; the cross attention of LXMERT).

    x <- LN(x + W Att(q = x, kv = the other stream)),   x <- LN(x + FF(x))        for both streams at once

Shape legend: B pairs, N positions of one stream, M of the other, C and W their widths.
"""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor, nn

from patchword.layers.attention import attend
from patchword.layers.transformer import merge_heads, padding_bias, split_heads

EPS = 1e-12
"""Of the norms, as in BERT."""


class StreamAttention(nn.Module):
    """Attention of one stream to the other, with its residual and norm."""

    def __init__(self, width: int, other: int, inner: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.query = nn.Linear(width, inner)
        self.key = nn.Linear(other, inner)
        self.value = nn.Linear(other, inner)
        self.output = nn.Linear(inner, width)
        self.norm = nn.LayerNorm(width, eps=EPS)

    def forward(
        self, x_BNC: Tensor, other_BMW: Tensor, other_mask_BM: Tensor | None, want_weights: bool = False
    ) -> tuple[Tensor, Tensor | None]:
        """The stream after it asked, (B, N, C), and the weights (B, H, N, M) where wanted; padding of the
        other stream gets weight 0."""
        queries = split_heads(self.query(x_BNC), self.heads)
        keys, values = (split_heads(part(other_BMW), self.heads) for part in (self.key, self.value))
        context, weights = attend(
            queries, keys, values, padding_bias(other_mask_BM, x_BNC), want_weights=want_weights
        )
        return self.norm(x_BNC + self.output(merge_heads(context))), weights


class StreamFeedForward(nn.Module):
    """The feed-forward of a stream, with its residual and norm."""

    def __init__(self, width: int, hidden: int) -> None:
        super().__init__()
        self.expand, self.contract = nn.Linear(width, hidden), nn.Linear(hidden, width)
        self.norm = nn.LayerNorm(width, eps=EPS)

    def forward(self, x_BNC: Tensor) -> Tensor:
        """Returns the stream, (B, N, C)."""
        return self.norm(x_BNC + self.contract(F.gelu(self.expand(x_BNC))))


class CoAttention(nn.Module):
    """Both streams ask each other as they were before, and think."""

    def __init__(self, text: int, picture: int, inner: int, heads: int, expansion: int = 4) -> None:
        super().__init__()
        self.text_asks, self.picture_asks = (
            StreamAttention(text, picture, inner, heads),
            StreamAttention(picture, text, inner, heads),
        )
        self.text_thinks = StreamFeedForward(text, expansion * text)
        self.picture_thinks = StreamFeedForward(picture, expansion * picture)

    def forward(
        self,
        text_BLC: Tensor,
        picture_BNW: Tensor,
        text_mask_BL: Tensor | None,
        picture_mask_BN: Tensor | None,
    ) -> tuple[Tensor, Tensor]:
        """The text stream (B, L, C) and the picture stream (B, N, W)."""
        asked_BLC, _ = self.text_asks(text_BLC, picture_BNW, picture_mask_BN)
        asked_BNW, _ = self.picture_asks(picture_BNW, text_BLC, text_mask_BL)
        return self.text_thinks(asked_BLC), self.picture_thinks(asked_BNW)
