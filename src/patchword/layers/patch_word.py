"""Patch-word alignment: how well the words of a caption and the tokens of a picture find each other.

    similarity = mean over words of (best token) + mean over tokens of (best word)

The sum (not the average) of the two means of leaky cosines: it lies within about [-0.2, 2], and margins and thresholds count in that unit.

Shape legend (with the one of `types.py`):
    I images of a tile   J captions of a tile   L words, padded to the longest of the tile   N patches   P tokens of a picture   d width
    R rows of any kind
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional

LEAK = 0.1
"""Slope of the leaky ReLU on negative cosines, as the public code of LAPS has it."""


_CACHED_NUMBERS = 196 * 512


def unit(vectors: Tensor) -> Tensor:
    """The same vectors at length one (zero vectors stay zero)."""
    return functional.normalize(vectors, dim=-1)


def max_mean(cosines_IJLP: Tensor, words_JL: Tensor, tokens_IJP: Tensor | None = None) -> Tensor:
    """Similarities (I, J) from the cosines between the words of caption j and the tokens of image i (Fu 2024, sparse patch-word alignment).

    `words_JL` is True for real words. `tokens_IJP`, where given, are weights of the tokens in [0, 1]: a token of weight 0 neither counts in
    the mean over tokens nor is chosen by a word.
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
    """x K x' per row of x, for a symmetric K: the squared length of a sum of patches, from the weights and the patches' Gram matrix.

    Written out because K's symmetry makes x K, which the forward has, half of the gradient too.
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
    """1 / |sum of w_n v_n| for each row of weights, from the inner products of the patches; 0 for a sum of length zero."""
    squared_IR = _SquaredLengths.apply(weights_IRN, gram_INN)
    tiny = torch.finfo(squared_IR.dtype).tiny
    return torch.where(squared_IR > tiny, squared_IR.clamp_min(tiny).rsqrt(), 0.0)


def mixed_cosines(products_IJLN: Tensor, keep_IJN: Tensor, mixes_ICN: Tensor, gram_INN: Tensor) -> Tensor:
    """Cosines (I, J, L, C) between words and the C weighted sums of those patches that a caption keeps.

    `products_IJLN` are the inner products of the unit words with the patches, `gram_INN` those of the patches with each other. With
    a = sum of w_n v_n: <t, a> = sum of w_n <t, v_n> and |a|^2 = w K w', so that the sums themselves, a tensor (I, J, C, d), are never made.
    """
    I, J, L, N = products_IJLN.shape
    C = mixes_ICN.shape[1]
    kept_IRN = (products_IJLN * keep_IJN[:, :, None]).view(I, J * L, N)
    inner_IJLC = (kept_IRN @ mixes_ICN.transpose(1, 2)).view(I, J, L, C)
    weights_IRN = (keep_IJN[:, :, None] * mixes_ICN[:, None]).view(I, J * C, N)
    return inner_IJLC * inverse_lengths(weights_IRN, gram_INN).view(I, J, 1, C)


def sum_cosines(products_IJLN: Tensor, weights_IJN: Tensor, gram_INN: Tensor) -> Tensor:
    """Cosines (I, J, L, 1) between words and the one sum of patches with these weights; as `mixed_cosines`."""
    inner_IJL = torch.linalg.vecdot(products_IJLN, weights_IJN[:, :, None])
    return (inner_IJL * inverse_lengths(weights_IJN, gram_INN)[:, :, None])[..., None]


class Tile(NamedTuple):
    """How many images and captions are compared in one piece: speed and peak memory, never the result."""

    images: int
    captions: int


def tile_for(device: torch.device, numbers: int, captions: int = 128) -> Tile:
    """Few pictures at a time keep a CPU in its cache; an accelerator wants wide products. Few captions: less padding, more calls.

    `numbers` is what the patches of one picture take (patches times width): as many pictures go together as fill about 400 KB.
    """
    return Tile(max(1, _CACHED_NUMBERS // numbers), captions) if device.type == "cpu" else Tile(16, captions)


def spans(count: int, width: int) -> Iterator[slice]:
    """`range(count)` in consecutive slices of at most `width`."""
    for start in range(0, count, width):
        yield slice(start, min(start + width, count))
