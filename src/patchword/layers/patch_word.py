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
    """x K x' per row of x, for a symmetric K: the squared length of a sum of patches, from the weights and the patches' Gram matrix."""

    @staticmethod
    def forward(ctx, weights_IRN: Tensor, gram_INN: Tensor) -> Tensor:
        if any(ctx.needs_input_grad):
            mapped_IRN = weights_IRN @ gram_INN
            ctx.save_for_backward(weights_IRN, mapped_IRN)
            return torch.linalg.vecdot(weights_IRN, mapped_IRN)
        # K is symmetric: four bands of its upper triangle, off-diagonal blocks doubled, are five eighths of the products.
        count = weights_IRN.shape[-1]
        band = -(-count // 4)
        lengths_IR = weights_IRN.new_zeros(weights_IRN.shape[:-1])
        for start in range(0, count, band):
            block_INN = gram_INN[:, start : start + band, start:].clone()
            block_INN[:, :, band:] *= 2.0
            lengths_IR += torch.linalg.vecdot(weights_IRN[:, :, start : start + band] @ block_INN, weights_IRN[:, :, start:])
        return lengths_IR

    @staticmethod
    def backward(ctx, gradient_IR: Tensor) -> tuple[Tensor | None, Tensor | None]:
        weights_IRN, mapped_IRN = ctx.saved_tensors
        by_weights = by_gram = None
        if ctx.needs_input_grad[0]:
            by_weights = mapped_IRN * (2.0 * gradient_IR)[..., None]
        if ctx.needs_input_grad[1]:
            by_gram = (weights_IRN * gradient_IR[..., None]).transpose(1, 2) @ weights_IRN
        return by_weights, by_gram


def sum_cosines(products_IJLN: Tensor, weights_IJPN: Tensor, gram_INN: Tensor) -> Tensor:
    """Cosines (I, J, L, P) between words and weighted sums of patches, without ever making the sums, whose tensor would be (I, J, P, d).

    `products_IJLN` are the inner products of the unit words with the patches, `weights_IJPN` the weights of token p over the patches,
    `gram_INN` the inner products of the patches with each other. With a = sum of w_n v_n: <t, a> = sum of w_n <t, v_n> and
    |a|^2 = w K w'. A sum of length zero has cosine zero with every word.
    """
    I, J, L, N = products_IJLN.shape
    P = weights_IJPN.shape[2]
    inner_IJLP = torch.bmm(products_IJLN.reshape(I * J, L, N), weights_IJPN.reshape(I * J, P, N).transpose(1, 2)).view(I, J, L, P)
    squared_IJP = _SquaredLengths.apply(weights_IJPN.reshape(I, J * P, N), gram_INN).view(I, J, P)
    return inner_IJLP * squared_IJP.clamp_min(1e-24).rsqrt()[:, :, None]


class Tile(NamedTuple):
    """How many images and captions are compared in one piece: speed and peak memory, never the result."""

    images: int
    captions: int


def tile_for(device: torch.device) -> Tile:
    """One picture at a time keeps a CPU in its cache; an accelerator wants wide products."""
    return Tile(1, 32) if device.type == "cpu" else Tile(16, 64)


def spans(count: int, width: int) -> Iterator[slice]:
    """`range(count)` in consecutive slices of at most `width`."""
    for start in range(0, count, width):
        yield slice(start, min(start + width, count))
