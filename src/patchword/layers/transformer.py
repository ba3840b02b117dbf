"""The parts of a transformer that captioners share: attention with heads, feed-forward, encoder layer.

Residuals are normalised after the sum (post-LN; Vaswani 2017), as in the captioning papers. Nothing here
depends on words or pictures.

Shape legend: B images, R = B*K rows of a search or of several captions per image (image by image), T tokens,
N keys, C width, H heads, D width of one head, P the pair of keys and values.
"""

from __future__ import annotations

from collections import namedtuple
from collections.abc import Callable
from typing import NamedTuple, cast

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from patchword.errors import ConfigError, ModelError
from patchword.layers.attention import attend
from patchword.layers.dropout import drawn_probability, kept
from patchword.layers.linear import Linear, linear


def check_heads(width: int, heads: int) -> None:
    """Raises ConfigError where the width is no multiple of the heads, or of 4 (grid positions)."""
    if width % heads:
        raise ConfigError(
            f"width {width} cannot be cut into {heads} heads of one size; choose a width that is a multiple "
            "of heads"
        )
    if width % 4:
        raise ConfigError(f"width {width} takes no two-dimensional sine positions; choose a multiple of 4")


def split_heads(x_BTC: Tensor, heads: int) -> Tensor:
    """Views (B, T, H*D) as (B, H, T, D), without a copy."""
    # By `view` and not `unflatten`, which a graph that is written would hold with the sizes of its example.
    return x_BTC.view(*x_BTC.shape[:-1], heads, x_BTC.shape[-1] // heads).transpose(1, 2)


def merge_heads(x_BHTD: Tensor) -> Tensor:
    """Reshapes (B, H, T, D) back to (B, T, H*D)."""
    return x_BHTD.transpose(1, 2).flatten(2)


def causal_bias(length: int, like: Tensor) -> Tensor:
    """Additive bias (T, T) that hides from each position everything after it."""
    return torch.full((length, length), float("-inf"), dtype=like.dtype, device=like.device).triu(1)


def padding_bias(mask_BN: Tensor | None, like: Tensor) -> Tensor | None:
    """Additive bias (B, 1, 1, N) that hides padding; None where there is none."""
    if mask_BN is None:
        return None
    return torch.zeros(mask_BN.shape, dtype=like.dtype, device=like.device).masked_fill_(
        ~mask_BN, float("-inf")
    )[:, None, None]


def initialise(module: nn.Module) -> None:
    """Sets Xavier-uniform weights and zero biases in every Linear below `module`.

    Each projection in a FusedLinear is initialised by its own shape.
    """
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
    """Self-attention with queries, keys and values from a single product, and an output projection."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.qkv = FusedLinear(width, 3 * width)
        self.output = Linear(width, width)

    def project(self, x_BTC: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Returns queries, keys and values, (B, H, T, D) each."""
        apart = (*x_BTC.shape[:-1], 3, self.heads, x_BTC.shape[-1] // self.heads)
        queries_BHTD, keys_BHTD, values_BHTD = self.qkv(x_BTC).view(apart).permute(2, 0, 3, 1, 4)
        return queries_BHTD, keys_BHTD, values_BHTD

    def merge(self, context_BHTD: Tensor) -> Tensor:
        """Passes the heads' contexts through the output projection, (B, T, C)."""
        return self.output(merge_heads(context_BHTD))

    def forward(self, x_BTC: Tensor, bias: Tensor | None = None) -> Tensor:
        """Attends from a sequence to itself; `bias` is additive and broadcasts to (B, H, T, T)."""
        context_BHTD, _ = attend(*self.project(x_BTC), bias)
        return self.merge(context_BHTD)


class CrossAttention(nn.Module):
    """Attention to something outside the sequence, whose keys and values are projected only once."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.query = Linear(width, width)
        self.keys_values = FusedLinear(width, 2 * width)
        self.output = Linear(width, width)

    def project(self, seen_BNC: Tensor, keyed_BNC: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Returns keys and values, (B, H, N, D) each; there may be more than one leading axis.

        `keyed_BNC` gives the keys a source of their own, for example with positions added.
        """
        if keyed_BNC is None:
            keys_BNC, values_BNC = self.keys_values(seen_BNC).chunk(2, dim=-1)
        else:
            (keys_CC, values_CC), (keys_C, values_C) = (
                self.keys_values.weight.chunk(2),
                self.keys_values.bias.chunk(2),
            )
            keys_BNC, values_BNC = linear(keyed_BNC, keys_CC, keys_C), linear(seen_BNC, values_CC, values_C)
        apart = (*keys_BNC.shape[:-1], self.heads, keys_BNC.shape[-1] // self.heads)
        return keys_BNC.view(apart).transpose(-3, -2), values_BNC.view(apart).transpose(-3, -2)

    def queries(self, x_RTC: Tensor, images: int) -> Tensor:
        """Queries of an image's rows side by side, (B, H, K*T, D), so that keys need no copy per row."""
        return self.query(x_RTC).view(images, -1, self.heads, x_RTC.shape[-1] // self.heads).transpose(1, 2)

    def forward(
        self,
        x_RTC: Tensor,
        keys_BHND: Tensor,
        values_BHND: Tensor,
        bias: Tensor | None = None,
        want_weights: bool = False,
    ) -> tuple[Tensor, Tensor | None]:
        """Returns the context (R, T, C), and the weights (R, H, T, N) where `want_weights` is set.

        `bias` broadcasts to (B, H, K*T, N).
        """
        context_BHTD, weights_BHTN = attend(
            self.queries(x_RTC, keys_BHND.shape[0]), keys_BHND, values_BHND, bias, want_weights
        )
        context_RTC = self.output(merge_heads(context_BHTD).view(x_RTC.shape))
        return context_RTC, None if weights_BHTN is None else weights_of_rows(weights_BHTN, len(x_RTC))


class AttentionSource(NamedTuple):
    """Keys and values for the cross-attention of one decoder layer."""

    keys_BHND: Tensor
    values_BHND: Tensor
    bias_B11N: Tensor | None
    last: bool


def each_layer(keys_BLHND: Tensor, values_BLHND: Tensor, bias_B11N: Tensor | None) -> list[AttentionSource]:
    """Splits the keys and values of all decoder layers at once.

    Indexing each layer separately would fill a gradient as large as all layers, once per layer, in the
    backward pass.
    """
    keys, values = keys_BLHND.unbind(dim=1), values_BLHND.unbind(dim=1)
    return [
        AttentionSource(k_BHND, v_BHND, bias_B11N, k_BHND is keys[-1])
        for k_BHND, v_BHND in zip(keys, values, strict=True)
    ]


def weights_of_rows(weights_BHTN: Tensor, rows: int) -> Tensor:
    """Views weights (B, H, K*T, N) as (R, H, T, N)."""
    images = len(weights_BHTN)
    return weights_BHTN.unflatten(2, (rows // images, -1)).transpose(1, 2).flatten(0, 1)


def add_dropped(x_BTC: Tensor, part_BTC: Tensor, p: float, training: bool) -> Tensor:
    """Returns x + dropout(part) at probability p, the residual of a transformer."""
    return _DropoutAddition.apply(x_BTC, part_BTC, p) if training and p else x_BTC + part_BTC


class _DropoutAddition(torch.autograd.Function):
    """x + dropout(part), storing one byte per number for the backward pass.

    On a CPU, torch's dropout stores four, and writes the dropped part out.
    """

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
    """Returns dropout(ReLU(x)) at probability p, in place."""
    return _ReluDropout.apply(x_BTC, p) if training and p else x_BTC.relu_()


class _ReluDropout(torch.autograd.Function):
    """dropout(ReLU(x)), storing only its result, which the next layer stores anyway.

    No gradient passes where the result is zero. Autograd would also store the rectified values and the noise,
    and these are the widest tensors of a transformer.
    """

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
        """Returns the transformed tokens, (B, T, C)."""
        hidden_BTC = relu_dropped_(self.expand(x_BTC), self.dropout, self.training)
        return self.norm(add_dropped(x_BTC, self.contract(hidden_BTC), self.dropout, self.training))


class EncoderLayer(nn.Module):
    """Self-attention and feed-forward over the patches of a picture."""

    def __init__(self, width: int, heads: int, hidden: int, dropout: float) -> None:
        super().__init__()
        self.attention = SelfAttention(width, heads)
        self.attention_norm = nn.LayerNorm(width)
        self.feed_forward = FeedForward(width, hidden, dropout)
        self.dropout = dropout

    def forward(self, x_BNC: Tensor, bias: Tensor | None = None) -> Tensor:
        """Returns the encoded patches, (B, N, C); `bias` is additive and broadcasts to (B, H, N, N)."""
        mixed_BNC = add_dropped(x_BNC, self.attention(x_BNC, bias), self.dropout, self.training)
        return self.feed_forward(self.attention_norm(mixed_BNC))


def cache_type(layers: int) -> Callable[..., NamedTuple]:
    """The state type of a decoder: a NamedTuple with one tensor (R, P, H, T, D) per layer.

    A tensor holds the keys and values of the tokens so far. One tensor for all layers would be copied just as
    often, but it would exceed the block size that the allocator reuses, and new memory would be mapped at
    every word.
    """
    names = [f"layer_{number}_RPHTD" for number in range(layers)]
    return cast(Callable[..., NamedTuple], namedtuple("Cache", names))


def grown(cache_RPHTD: Tensor, keys_RH1D: Tensor, values_RH1D: Tensor) -> Tensor:
    """Returns the cached keys and values of a layer, followed by those of one more token."""
    return torch.cat((cache_RPHTD, torch.stack((keys_RH1D, values_RH1D), dim=1)), dim=3)


def check_length(length: int, longest: int) -> None:
    """Raises ModelError where a caption has more tokens than the model has positions."""
    if length > longest:
        raise ModelError(
            f"a caption of {length} tokens does not fit: the model has positions for {longest}; shorten the "
            "caption or raise max_positions"
        )
