"""Normal distributions that a network gives by mean and logarithm of the variance.

Kingma and Welling 2014, "Auto-Encoding Variational Bayes" (arXiv 1312.6114), section 2.4 and appendix B.

Shape legend: B rows, C channels.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor


class Condition(NamedTuple):
    """A sentence as a normal distribution, and a sample of it (conditioning augmentation)."""

    sample_BC: Tensor
    mean_BC: Tensor
    log_variance_BC: Tensor


def drawn(mean_BC: Tensor, log_variance_BC: Tensor) -> Tensor:
    """A sample of each normal distribution (B, C), through which gradients reach mean and variance."""
    return mean_BC + (log_variance_BC / 2).exp() * torch.randn_like(mean_BC)


def divergence(mean_BC: Tensor, log_variance_BC: Tensor) -> Tensor:
    """KL(N(mean, variance) || N(0, 1)) of each row (B), in nats, summed over the channels."""
    return (mean_BC.square() + log_variance_BC.exp() - 1 - log_variance_BC).sum(1) / 2
