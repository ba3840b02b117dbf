"""Patch-word alignment: how well the words of a caption and the tokens of a picture match.

    similarity = mean over words of (best token) + mean over tokens of (best word)

The cosines pass a leaky ReLU. The similarity is the sum, not the average, of the two means, so it lies within
about [-0.2, 2]; margins and thresholds are in this unit.

Shape legend (in addition to `types.py`):
    I images of a tile   J captions of a tile   L words, padded to the longest caption of the tile
    N patches   P tokens of a picture   C weighted sums of patches   d width   R rows of any kind
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional

LEAK = 0.1
"""Slope of the leaky ReLU on negative cosines, as in the public code of LAPS."""


_CACHED_NUMBERS = 196 * 512


def unit(vectors: Tensor) -> Tensor:
    """Scales the vectors to length one; zero vectors stay zero."""
    return functional.normalize(vectors, dim=-1)


def max_mean(cosines_IJLP: Tensor, words_JL: Tensor, tokens_IJP: Tensor | None = None) -> Tensor:
    """Returns the similarities (I, J) from the cosines between words and tokens.

    This is the sparse patch-word alignment of LAPS (Fu 2024). `words_JL` is True for real words. `tokens_IJP`
    optionally gives the tokens weights in [0, 1]: a token of weight 0 does not count in the mean over tokens,
    and no word can choose it.
    """
    scores_IJLP = functional.leaky_relu(cosines_IJLP, LEAK)
    reachable_IJLP = scores_IJLP
    if tokens_IJP is not None:
        reachable_IJLP = scores_IJLP.masked_fill((tokens_IJP < 0.5)[:, :, None], -torch.inf)
    per_word_IJL = reachable_IJLP.amax(dim=-1)
    if words_JL.all():
        from_words_IJ = per_word_IJL.mean(dim=-1)
    else:
        from_words_IJ = per_word_IJL.masked_fill(~words_JL, 0.0).sum(dim=-1) / words_JL.sum(dim=-1)
        scores_IJLP = scores_IJLP.masked_fill(~words_JL[:, :, None], -torch.inf)
    per_token_IJP = scores_IJLP.amax(dim=-2)
    if tokens_IJP is None:
        return from_words_IJ + per_token_IJP.mean(dim=-1)
    return from_words_IJ + (per_token_IJP * tokens_IJP).sum(dim=-1) / tokens_IJP.sum(dim=-1)


class _SquaredLengths(torch.autograd.Function):
    """x K x' per row of x, for a symmetric K.

    This is the squared length of a weighted sum of patches, from the weights and the patches' Gram matrix.
    The gradient is written out because K is symmetric, so that x K from the forward pass is half of it.
    """

    @staticmethod
    def forward(ctx, weights_IRN: Tensor, gram_INN: Tensor) -> Tensor:
        mapped_IRN = weights_IRN @ gram_INN
        ctx.save_for_backward(weights_IRN, mapped_IRN)
        return torch.linalg.vecdot(weights_IRN, mapped_IRN)

    @staticmethod
    def backward(ctx, gradient_IR: Tensor) -> tuple[Tensor | None, Tensor | None]:
        weights_IRN, mapped_IRN = ctx.saved_tensors
        by_weights = by_gram = None
        if ctx.needs_input_grad[0]:
            by_weights = mapped_IRN * (2.0 * gradient_IR)[..., None]
        if ctx.needs_input_grad[1]:
            by_gram = (weights_IRN * gradient_IR[..., None]).transpose(1, 2) @ weights_IRN
        return by_weights, by_gram


def inverse_lengths(weights_IRN: Tensor, gram_INN: Tensor) -> Tensor:
    """Returns 1 / |sum of w_n v_n| for each row of weights, and 0 where the sum has length zero.

    `gram_INN` holds the inner products of the patches.
    """
    squared_IR = _SquaredLengths.apply(weights_IRN, gram_INN)
    tiny = torch.finfo(squared_IR.dtype).tiny
    return torch.where(squared_IR > tiny, squared_IR.clamp_min(tiny).rsqrt(), 0.0)


def mixed_cosines(products_IJLN: Tensor, keep_IJN: Tensor, mixes_ICN: Tensor, gram_INN: Tensor) -> Tensor:
    """Returns cosines (I, J, L, C) between words and C weighted sums of the patches that each caption keeps.

    `products_IJLN` are the inner products of the unit words with the patches, `gram_INN` those of the patches
    with each other. For a = sum of w_n v_n, <t, a> = sum of w_n <t, v_n> and |a|^2 = w K w', so the sums
    themselves, a tensor (I, J, C, d), are never formed.
    """
    I, J, L, N = products_IJLN.shape
    C = mixes_ICN.shape[1]
    kept_IRN = (products_IJLN * keep_IJN[:, :, None]).view(I, J * L, N)
    inner_IJLC = (kept_IRN @ mixes_ICN.transpose(1, 2)).view(I, J, L, C)
    weights_IRN = (keep_IJN[:, :, None] * mixes_ICN[:, None]).view(I, J * C, N)
    return inner_IJLC * inverse_lengths(weights_IRN, gram_INN).view(I, J, 1, C)


def sum_cosines(products_IJLN: Tensor, weights_IJN: Tensor, gram_INN: Tensor) -> Tensor:
    """Returns cosines (I, J, L, 1) between words and one weighted sum of patches, as `mixed_cosines` does."""
    inner_IJL = torch.linalg.vecdot(products_IJLN, weights_IJN[:, :, None])
    return (inner_IJL * inverse_lengths(weights_IJN, gram_INN)[:, :, None])[..., None]


class Tile(NamedTuple):
    """Numbers of images and captions compared at once; they change speed and memory, never the result."""

    images: int
    captions: int


def tile_for(device: torch.device, numbers: int, captions: int = 128) -> Tile:
    """Chooses a tile: few pictures at a time on a CPU, so that they stay in its cache, and 16 elsewhere.

    `numbers` is the number of values in the patches of one picture (patches times width); on a CPU a tile
    holds as many pictures as fill about 400 KB. Fewer `captions` mean less padding and more calls.
    """
    return Tile(max(1, _CACHED_NUMBERS // numbers), captions) if device.type == "cpu" else Tile(16, captions)


def spans(count: int, width: int) -> Iterator[slice]:
    """Splits `range(count)` into consecutive slices of at most `width`."""
    for start in range(0, count, width):
        yield slice(start, min(start + width, count))
