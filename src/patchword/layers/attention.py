"""Scaled dot-product attention: the one function that every transformer of the package attends with.

    attend(Q, K, V) = softmax(Q K^T / sqrt(D) + bias) V                                         (Vaswani et al. 2017, equation 1)

Keys and values may come from anywhere: the sequence itself, a picture, both concatenated, memory slots, prototypes. Projection, splitting
into heads and the choice of keys belong to the caller; so does the additive bias, which serves as causal mask, padding mask or log-bias.

Shape legend: see `patchword.types`; here N counts whatever is attended to.
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
    """Attention of T queries over N keys: the mixed values (B, H, T, D of the values), and the weights (B, H, T, N) if they are wanted.

    `bias` is added to the scaled scores and must broadcast to (B, H, T, N); minus infinity hides a key. A query from which every key is
    hidden gives NaN: callers leave it at least one. `dropout` is the probability that a weight is dropped, for training only. Without
    weights the fused kernel of torch runs, which never stores the scores.
    """
    # On a CPU the fused kernel's backward pass in bf16 takes about eight times the products' time (torch 2.13), in fp32 as long.
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
    """The bias of a boolean mask of any shape: 0 where it is True (something real stands), minus infinity elsewhere."""
    return torch.zeros(mask.shape, dtype=dtype, device=mask.device).masked_fill_(~mask, -math.inf)
