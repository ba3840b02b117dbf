"""The parts of a transformer that captioners share (Vaswani 2017): projections with heads, attention sub-layers, feed-forward.

Residuals are normalised after the sum (post-LN), as in the captioning papers. Nothing here knows of words or pictures.

Letters: B images, R = B*K rows of a search or of several captions per image (image by image), T tokens, N things looked at, C width,
H heads, D width of one head, P the pair of keys and values.
"""

from __future__ import annotations

from collections import namedtuple
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from patchword.errors import ConfigError, ModelError
from patchword.layers.attention import attend
from patchword.layers.dropout import drawn_probability, kept
from patchword.layers.linear import Linear, linear


def check_heads(width: int, heads: int) -> None:
    """Raises ConfigError where the heads do not divide the width, or the width takes no grid positions."""
    if width % heads:
        raise ConfigError(
            f"width {width} cannot be cut into {heads} heads of one size; choose a width that is a multiple of heads"
        )
    if width % 4:
        raise ConfigError(f"width {width} takes no two-dimensional sine positions; choose a multiple of 4")


def split_heads(x_BTC: Tensor, heads: int) -> Tensor:
    """(B, T, H*D) seen as (B, H, T, D); no copy."""
    return x_BTC.unflatten(-1, (heads, -1)).transpose(1, 2)


def merge_heads(x_BHTD: Tensor) -> Tensor:
    """(B, H, T, D) back to (B, T, H*D)."""
    return x_BHTD.transpose(1, 2).flatten(2)


def causal_bias(length: int, like: Tensor) -> Tensor:
    """Additive bias (T, T) that hides from each position what comes after it."""
    return torch.full((length, length), float("-inf"), dtype=like.dtype, device=like.device).triu(1)


def padding_bias(mask_BN: Tensor | None, like: Tensor) -> Tensor | None:
    """Additive bias (B, 1, 1, N) that hides what is not real; None where all is."""
    if mask_BN is None:
        return None
    return torch.zeros(mask_BN.shape, dtype=like.dtype, device=like.device).masked_fill_(
        ~mask_BN, float("-inf")
    )[:, None, None]


def initialise(module: nn.Module) -> None:
    """Xavier-uniform weights and zero biases for every Linear below `module`; each projection of a fused one by its own shape."""
    for part in module.modules():
        if isinstance(part, nn.Linear):
            blocks = (
                max(1, round(part.out_features / part.in_features)) if isinstance(part, FusedLinear) else 1
            )
            for block_OC in part.weight.chunk(blocks):
                nn.init.xavier_uniform_(block_OC)
            if part.bias is not None:
                nn.init.zeros_(part.bias)


class FusedLinear(Linear):
    """Several square projections of one input in a single matrix product."""


class SelfAttention(nn.Module):
    """Queries, keys and values of one sequence in a single product, and the output projection."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.qkv = FusedLinear(width, 3 * width)
        self.output = Linear(width, width)

    def project(self, x_BTC: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Queries, keys and values, (B, H, T, D) each."""
        queries_BHTD, keys_BHTD, values_BHTD = (
            self.qkv(x_BTC).unflatten(-1, (3, self.heads, -1)).permute(2, 0, 3, 1, 4)
        )
        return queries_BHTD, keys_BHTD, values_BHTD

    def merge(self, context_BHTD: Tensor) -> Tensor:
        """The heads' contexts through the output projection, (B, T, C)."""
        return self.output(merge_heads(context_BHTD))

    def forward(self, x_BTC: Tensor, bias: Tensor | None = None) -> Tensor:
        """Attention of a sequence to itself; `bias` is additive and broadcasts to (B, H, T, T)."""
        context_BHTD, _ = attend(*self.project(x_BTC), bias)
        return self.merge(context_BHTD)


class CrossAttention(nn.Module):
    """Attention to something outside the sequence, whose keys and values are projected once and then only read."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.query = Linear(width, width)
        self.keys_values = FusedLinear(width, 2 * width)
        self.output = Linear(width, width)

    def project(self, seen_BNC: Tensor, keyed_BNC: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Keys and values, (B, H, N, D) each; leading axes may be more than one. `keyed_BNC` is what keys are made of, where that differs
        from what values are."""
        if keyed_BNC is None:
            keys_BNC, values_BNC = self.keys_values(seen_BNC).chunk(2, dim=-1)
        else:
            (keys_CC, values_CC), (keys_C, values_C) = (
                self.keys_values.weight.chunk(2),
                self.keys_values.bias.chunk(2),
            )
            keys_BNC, values_BNC = linear(keyed_BNC, keys_CC, keys_C), linear(seen_BNC, values_CC, values_C)
        heads = (self.heads, -1)
        return keys_BNC.unflatten(-1, heads).transpose(-3, -2), values_BNC.unflatten(-1, heads).transpose(
            -3, -2
        )

    def queries(self, x_RTC: Tensor, images: int) -> Tensor:
        """Queries of all rows of an image side by side, (B, H, K*T, D), so that keys need no copy per row."""
        return self.query(x_RTC).view(images, -1, self.heads, x_RTC.shape[-1] // self.heads).transpose(1, 2)

    def forward(
        self,
        x_RTC: Tensor,
        keys_BHND: Tensor,
        values_BHND: Tensor,
        bias: Tensor | None = None,
        want_weights: bool = False,
    ) -> tuple[Tensor, Tensor | None]:
        """Context (R, T, C), and the weights (R, H, T, N) where wanted. `bias` broadcasts to (B, H, K*T, N)."""
        context_BHTD, weights_BHTN = attend(
            self.queries(x_RTC, len(keys_BHND)), keys_BHND, values_BHND, bias, want_weights
        )
        context_RTC = self.output(merge_heads(context_BHTD).view(x_RTC.shape))
        return context_RTC, None if weights_BHTN is None else weights_of_rows(weights_BHTN, len(x_RTC))


class AttentionSource(NamedTuple):
    """What one decoder layer's cross-attention looks at."""

    keys_BHND: Tensor
    values_BHND: Tensor
    bias_B11N: Tensor | None
    last: bool


def each_layer(keys_BLHND: Tensor, values_BLHND: Tensor, bias_B11N: Tensor | None) -> list[AttentionSource]:
    """The keys and values of all decoder layers apart, all at once: an index for each would fill a gradient as large as all on the way
    back."""
    keys, values = keys_BLHND.unbind(dim=1), values_BLHND.unbind(dim=1)
    return [
        AttentionSource(k_BHND, v_BHND, bias_B11N, k_BHND is keys[-1])
        for k_BHND, v_BHND in zip(keys, values, strict=True)
    ]


def weights_of_rows(weights_BHTN: Tensor, rows: int) -> Tensor:
    """Weights over (B, H, K*T, N) seen as (R, H, T, N)."""
    images = len(weights_BHTN)
    return weights_BHTN.unflatten(2, (rows // images, -1)).transpose(1, 2).flatten(0, 1)


def add_dropped(x_BTC: Tensor, part_BTC: Tensor, p: float, training: bool) -> Tensor:
    """x + dropout(part) at probability p: a residual of a transformer."""
    return _AddDropped.apply(x_BTC, part_BTC, p) if training and p else x_BTC + part_BTC


class _AddDropped(torch.autograd.Function):
    """Keeps one byte for each number of the part; torch's dropout on a processor keeps four, and writes the dropped part out."""

    @staticmethod
    def forward(ctx, x_BTC: Tensor, part_BTC: Tensor, p: float) -> Tensor:
        kept_BTC = kept(part_BTC, p)
        ctx.save_for_backward(kept_BTC)
        ctx.p, ctx.dtype = drawn_probability(p), part_BTC.dtype
        return torch.addcmul(x_BTC, part_BTC.to(x_BTC.dtype), kept_BTC.to(x_BTC.dtype), value=1 / (1 - ctx.p))

    @staticmethod
    @once_differentiable
    def backward(ctx, grad_BTC: Tensor) -> tuple[Tensor, Tensor, None]:
        (kept_BTC,) = ctx.saved_tensors
        return grad_BTC, torch.where(kept_BTC, grad_BTC, 0).div_(1 - ctx.p).to(ctx.dtype), None


def relu_dropped_(x_BTC: Tensor, p: float, training: bool) -> Tensor:
    """dropout(ReLU(x)) at probability p, in place."""
    return _ReluDropout.apply(x_BTC, p) if training and p else x_BTC.relu_()


class _ReluDropout(torch.autograd.Function):
    """Keeps the result alone, which the next layer keeps anyway: where it is zero, no gradient passes. Autograd would keep the rectified
    values and the noise beside it, and these are the widest tensors of a transformer."""

    @staticmethod
    def forward(ctx, x_BTC: Tensor, p: float) -> Tensor:
        ctx.mark_dirty(x_BTC)
        ctx.p = drawn_probability(p)
        x_BTC.relu_().mul_(kept(x_BTC, p)).mul_(1 / (1 - ctx.p))
        ctx.save_for_backward(x_BTC)
        return x_BTC

    @staticmethod
    @once_differentiable
    def backward(ctx, grad_BTC: Tensor) -> tuple[Tensor, None]:
        (dropped_BTC,) = ctx.saved_tensors
        return torch.where(dropped_BTC > 0, grad_BTC, 0).div_(1 - ctx.p), None


class FeedForward(nn.Module):
    """LN(x + dropout(W2 dropout(ReLU(W1 x)))), position by position."""

    def __init__(self, width: int, hidden: int, dropout: float) -> None:
        super().__init__()
        self.expand = Linear(width, hidden)
        self.contract = Linear(hidden, width)
        self.norm = nn.LayerNorm(width)
        self.dropout = dropout

    def forward(self, x_BTC: Tensor) -> Tensor:
        hidden_BTC = relu_dropped_(self.expand(x_BTC), self.dropout, self.training)
        return self.norm(add_dropped(x_BTC, self.contract(hidden_BTC), self.dropout, self.training))


class EncoderLayer(nn.Module):
    """Self-attention and feed-forward over a picture's patches."""

    def __init__(self, width: int, heads: int, hidden: int, dropout: float) -> None:
        super().__init__()
        self.attention = SelfAttention(width, heads)
        self.attention_norm = nn.LayerNorm(width)
        self.feed_forward = FeedForward(width, hidden, dropout)
        self.dropout = dropout

    def forward(self, x_BNC: Tensor, bias: Tensor | None = None) -> Tensor:
        mixed_BNC = add_dropped(x_BNC, self.attention(x_BNC, bias), self.dropout, self.training)
        return self.feed_forward(self.attention_norm(mixed_BNC))


def cache_type(layers: int) -> type[tuple]:
    """The state of a decoder: a NamedTuple of one tensor per layer, keys and values of the tokens so far, (R, P, H, T, D).

    One tensor for all layers would be copied no less often, but outgrow what the allocator keeps, and be paged in anew at every word.
    """
    return namedtuple("Cache", [f"layer_{number}_RPHTD" for number in range(layers)])


def grown(cache_RPHTD: Tensor, keys_RH1D: Tensor, values_RH1D: Tensor) -> Tensor:
    """The cached keys and values of a layer with those of one more token behind them."""
    return torch.cat((cache_RPHTD, torch.stack((keys_RH1D, values_RH1D), dim=1)), dim=3)


def check_length(length: int, longest: int) -> None:
    """Raises ModelError where a caption has more tokens than there are positions."""
    if length > longest:
        raise ModelError(
            f"a caption of {length} tokens does not fit: the model has positions for {longest}; shorten the caption or raise max_positions"
        )
