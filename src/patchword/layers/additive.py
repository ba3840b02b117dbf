"""Additive attention (Bahdanau et al. 2015), with which the recurrent captioners attend to a picture.

    e_i = w^T f(W_a a_i + W_h h) + b        weights = softmax over i
    f = tanh (Xu et al. 2015) or relu (the PyTorch course)

The keys W_a a_i are projected once per picture (`project`), the queries W_h h once per word. The expensive
part is f(keys + query), which is as large as the keys, for every word: autograd would keep one copy per word,
and writing the copies would be bound by memory bandwidth. The scores are therefore computed by a function
with its own gradient. It processes a few pictures at a time, so that the sum stays in the CPU's cache, stores
only keys and queries, and recomputes the sum in the backward pass.

Shape legend: B pictures, N patches, C their channels, A width of the attention, S width of the decoder's
state, K queries per picture.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Literal

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from patchword.layers.linear import Linear

_CACHED_ELEMENTS = 2**19
"""Number of sums processed at a time on a CPU: 2 MB, small enough for the cache and large enough that the
overhead of a call does not matter."""
_DEVICE_ELEMENTS = 2**26
"""The same on an accelerator, where few large kernels are faster; it only bounds memory."""


class AdditiveAttention(nn.Module):
    """Attention weights over N patches for each query; `scoring` names f."""

    def __init__(
        self, annotation_width: int, query_width: int, width: int, scoring: Literal["tanh", "relu"]
    ) -> None:
        super().__init__()
        self.key = Linear(annotation_width, width)
        self.query = Linear(query_width, width)
        self.score = Linear(width, 1)
        self._scores = {"tanh": tanh_scores, "relu": relu_scores}[scoring]

    def project(self, grid_BNC: Tensor) -> Tensor:
        """Returns the keys W_a a_i of every patch, (B, N, A).

        They are computed once per picture, for all words and beams.
        """
        return self.key(grid_BNC)

    def forward(self, keys_BNA: Tensor, queries_BKA: Tensor, mask_BN: Tensor | None = None) -> Tensor:
        """Returns the weights (B, K, N) of projected queries; they sum to one over the patches in `mask_BN`.

        With fewer rows of queries than of keys, the queries belong to the first pictures.
        """
        scores_BKN = self._scores(keys_BNA, queries_BKA, self.score.weight[0]) + self.score.bias
        if mask_BN is not None:
            scores_BKN = scores_BKN.masked_fill(~mask_BN[: queries_BKA.shape[0], None], -torch.inf)
        return scores_BKN.softmax(dim=-1)


def relu_scores(keys_BNA: Tensor, queries_BKA: Tensor, weight_A: Tensor) -> Tensor:
    """Returns w^T relu(keys + query), (B, K, N).

    With fewer rows of queries than of keys, the queries belong to the first pictures.
    """
    if torch.jit.is_tracing():
        return _plain(keys_BNA, queries_BKA, weight_A, torch.relu)
    return _ReluScores.apply(keys_BNA, queries_BKA, weight_A)


def tanh_scores(keys_BNA: Tensor, queries_BKA: Tensor, weight_A: Tensor) -> Tensor:
    """Returns w^T tanh(keys + query), (B, K, N).

    With fewer rows of queries than of keys, the queries belong to the first pictures.
    """
    if torch.jit.is_tracing():
        return _plain(keys_BNA, queries_BKA, weight_A, torch.tanh)
    return _TanhScores.apply(keys_BNA, queries_BKA, weight_A)


def _plain(
    keys_BNA: Tensor, queries_BKA: Tensor, weight_A: Tensor, activate: Callable[[Tensor], Tensor]
) -> Tensor:
    """The formula as it stands, with all sums at once, for a graph that is written for another runtime: it
    holds no buffers that are overwritten."""
    keys_bNA = keys_BNA[: queries_BKA.shape[0]]
    return activate(keys_bNA[:, None] + queries_BKA[:, :, None]) @ weight_A


class _ReluScores(torch.autograd.Function):
    @staticmethod
    def forward(ctx, keys_BNA: Tensor, queries_BKA: Tensor, weight_A: Tensor) -> Tensor:
        ctx.save_for_backward(keys_BNA, queries_BKA, weight_A)
        return _score(keys_BNA, queries_BKA, weight_A, torch.relu_)

    @staticmethod
    @once_differentiable
    def backward(ctx, grad_BKN: Tensor) -> tuple[Tensor | None, Tensor, Tensor]:
        return _score_backward(ctx, grad_BKN, torch.relu_, Tensor.sign_)


class _TanhScores(torch.autograd.Function):
    @staticmethod
    def forward(ctx, keys_BNA: Tensor, queries_BKA: Tensor, weight_A: Tensor) -> Tensor:
        ctx.save_for_backward(keys_BNA, queries_BKA, weight_A)
        return _score(keys_BNA, queries_BKA, weight_A, torch.tanh_)

    @staticmethod
    @once_differentiable
    def backward(ctx, grad_BKN: Tensor) -> tuple[Tensor | None, Tensor, Tensor]:
        return _score_backward(ctx, grad_BKN, torch.tanh_, _slope_of_tanh)


def _slope_of_tanh(activated: Tensor) -> Tensor:
    return activated.square_().neg_().add_(1)


def _pieces(keys_BNA: Tensor, queries_BKA: Tensor) -> Iterator[tuple[slice, Tensor]]:
    """Yields slices of pictures with their sums keys + query (b, K, N, A).

    Each step overwrites the buffer of the one before.
    """
    (B, K, A), N = queries_BKA.shape, keys_BNA.shape[1]
    limit = _CACHED_ELEMENTS if keys_BNA.device.type == "cpu" else _DEVICE_ELEMENTS
    pictures = min(B, max(1, limit // (K * N * A)))
    buffer = keys_BNA.new_empty(pictures, K, N, A)
    for first in range(0, B, pictures):
        piece = slice(first, min(first + pictures, B))
        sums_bKNA = buffer[: piece.stop - first]
        torch.add(keys_BNA[piece, None], queries_BKA[piece, :, None], out=sums_bKNA)
        yield piece, sums_bKNA


def _score(
    keys_BNA: Tensor, queries_BKA: Tensor, weight_A: Tensor, activate_: Callable[[Tensor], Tensor]
) -> Tensor:
    weight_A = weight_A.to(keys_BNA.dtype)
    queries_BKA = queries_BKA.to(keys_BNA.dtype)
    scores_BKN = keys_BNA.new_empty(*queries_BKA.shape[:2], keys_BNA.shape[1])
    for piece, sums_bKNA in _pieces(keys_BNA, queries_BKA):
        torch.mv(activate_(sums_bKNA).flatten(0, 2), weight_A, out=scores_BKN[piece].view(-1))
    return scores_BKN


def _score_backward(
    ctx, grad_BKN: Tensor, activate_: Callable[[Tensor], Tensor], slope_: Callable[[Tensor], Tensor]
) -> tuple[Tensor | None, Tensor, Tensor]:
    """Returns the gradients of keys, queries and weight; `slope_` turns f(x) into f'(x) in place."""
    keys_BNA, queries_BKA, weight_A = (saved.to(ctx.saved_tensors[0].dtype) for saved in ctx.saved_tensors)
    grad_BKN = grad_BKN.to(keys_BNA.dtype)
    B, K, A = queries_BKA.shape
    grad_keys_BNA = torch.empty_like(keys_BNA) if ctx.needs_input_grad[0] else None
    if grad_keys_BNA is not None:
        grad_keys_BNA[B:] = 0
    slopes_BKA = torch.empty_like(queries_BKA)
    grad_weight_A = torch.zeros_like(weight_A)
    for piece, sums_bKNA in _pieces(keys_BNA, queries_BKA):
        grad_bKN = grad_BKN[piece].contiguous()
        activated_bKNA = activate_(sums_bKNA)
        grad_weight_A.addmv_(activated_bKNA.flatten(0, 2).T, grad_bKN.view(-1))
        slope_bKNA = slope_(activated_bKNA)
        torch.matmul(grad_bKN[:, :, None], slope_bKNA, out=slopes_BKA[piece].unsqueeze(2))
        if grad_keys_BNA is not None:
            per_query_bKNA = slope_bKNA.mul_(grad_bKN[..., None])
            torch.mul(
                per_query_bKNA.sum(dim=1) if K > 1 else per_query_bKNA[:, 0],
                weight_A,
                out=grad_keys_BNA[piece],
            )
    return (
        grad_keys_BNA,
        (slopes_BKA * weight_A).to(ctx.saved_tensors[1].dtype),
        grad_weight_A.to(ctx.saved_tensors[2].dtype),
    )
