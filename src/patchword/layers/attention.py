"""Scaled dot-product attention, the one function with which every transformer of the package attends.

    attend(Q, K, V) = softmax(Q K^T / sqrt(D) + bias) V                   (Vaswani et al. 2017, equation 1)

Keys and values may come from anywhere: the sequence itself, a picture, both concatenated, memory slots, or
prototypes. The caller projects, splits into heads and chooses the keys. It also provides the additive bias,
which serves as causal mask, padding mask or log-bias.

Shape legend: see `patchword.types`; here N counts the keys.
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor


def attend(
    queries_BHTD: Tensor,
    keys_BHND: Tensor,
    values_BHND: Tensor,
    bias: Tensor | None = None,
    want_weights: bool = False,
    dropout: float = 0.0,
) -> tuple[Tensor, Tensor | None]:
    """Returns the context (B, H, T, D of the values) of T queries over N keys, and optionally the weights.

    The weights (B, H, T, N) are returned where `want_weights` is set; otherwise torch's fused kernel runs,
    which never stores the scores. `bias` is added to the scaled scores and must broadcast to (B, H, T, N);
    minus infinity hides a key. A query whose keys are all hidden gives NaN, so callers leave at least one
    visible. `dropout` is the probability of dropping a weight; set it during training only.
    """
    # On a CPU, the backward pass of the fused kernel takes about eight times as long as plain products in
    # bf16, and as long as these in fp32 (torch 2.13).
    slow_kernel = queries_BHTD.dtype == torch.bfloat16 and queries_BHTD.device.type == "cpu"
    if not want_weights and not slow_kernel:
        return F.scaled_dot_product_attention(
            queries_BHTD, keys_BHND, values_BHND, attn_mask=bias, dropout_p=dropout
        ), None
    scores_BHTN = queries_BHTD @ keys_BHND.transpose(-2, -1) / math.sqrt(queries_BHTD.shape[-1])
    if bias is not None:
        scores_BHTN = scores_BHTN + bias
    weights_BHTN = F.dropout(scores_BHTN.softmax(dim=-1), dropout)
    return weights_BHTN @ values_BHND, weights_BHTN if want_weights else None


def hide(mask: Tensor, dtype: torch.dtype = torch.float32) -> Tensor:
    """Turns a boolean mask of any shape into a bias: 0 where it is True, minus infinity elsewhere."""
    return torch.zeros(mask.shape, dtype=dtype, device=mask.device).masked_fill_(~mask, -math.inf)
