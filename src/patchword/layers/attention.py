"""Attention over projected queries, keys and values: one function for every model.

Letters: B rows, H heads, T queries, N keys, D width of one head.
"""

from __future__ import annotations

from torch import Tensor
from torch.nn import functional as F


def attend(
    queries_BHTD: Tensor, keys_BHND: Tensor, values_BHND: Tensor, bias: Tensor | None = None, want_weights: bool = False
) -> tuple[Tensor, Tensor | None]:
    """Scaled dot-product attention (Vaswani 2017, eq. 1): softmax(Q K^T / sqrt(D) + bias) V.

    `bias` is additive and broadcasts to (B, H, T, N): 0 where a query may look, -inf where it may not.
    Returns the context (B, H, T, D) and the weights (B, H, T, N), or None for the weights, when they are not wanted: then torch's
    fused kernel computes the same without ever storing them.
    """
    if not want_weights:
        return F.scaled_dot_product_attention(queries_BHTD, keys_BHND, values_BHND, attn_mask=bias), None
    scores_BHTN = queries_BHTD @ keys_BHND.transpose(-2, -1) * queries_BHTD.shape[-1] ** -0.5
    if bias is not None:
        scores_BHTN = scores_BHTN + bias
    weights_BHTN = scores_BHTN.softmax(dim=-1)
    return weights_BHTN @ values_BHND, weights_BHTN
