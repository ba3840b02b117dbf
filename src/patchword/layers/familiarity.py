"""How far a picture lies from those that a model was trained on, so that it can say where its answers are guesses.

    distance   d(x) = sqrt((x - m)^T S^-1 (x - m)), x the mean patch of the tower, m and S mean and covariance over training pictures
                                                                (Lee et al. 2018, arXiv 1807.03888, eq. 2, with one class)
    limit      1.25 times the largest distance among pictures that were not trained on

A classifier is as sure of what it has never seen as of what it knows; its tower's features are not where they usually are.

Letters: B images, N patches, C width of the tower.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from patchword.types import VisualFeatures

_MARGIN = 1.25
_SHRINKAGE = 0.01  # of the mean variance, on the diagonal: directions in which training pictures never differ must not decide alone


class Familiarity(nn.Module):
    """Mean, whitening and limit as buffers, saved with the model; until `fit` every picture is familiar."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.register_buffer("mean_C", torch.zeros(width))
        self.register_buffer("whiten_CC", torch.zeros(width, width))
        self.register_buffer("limit", torch.tensor(math.inf))

    @torch.no_grad()
    def fit(self, training_BC: Tensor, others_BC: Tensor) -> None:
        """Mean and covariance of mean patches (`mean_patch`) of training pictures, the limit from those of others."""
        mean_C = training_BC.float().mean(0)
        centred_BC = training_BC.float() - mean_C
        covariance_CC = centred_BC.T @ centred_BC / len(centred_BC)
        values_C, vectors_CC = torch.linalg.eigh(covariance_CC)
        shrunk_C = values_C.clamp(min=0) + _SHRINKAGE * values_C.mean().clamp(min=1e-12)
        self.mean_C.copy_(mean_C)
        self.whiten_CC.copy_(vectors_CC / shrunk_C.sqrt())
        self.limit.copy_(_MARGIN * self.distance(others_BC).max())

    @torch.no_grad()
    def distance(self, pictures_BC: Tensor) -> Tensor:
        """Distance (B,) of mean patches."""
        return ((pictures_BC.float() - self.mean_C) @ self.whiten_CC).norm(dim=1)


def mean_patch(features: VisualFeatures) -> Tensor:
    """The mean of each picture's real patches (B, C)."""
    if features.mask_BN is None:
        return features.grid_BNC.float().mean(1)
    real_BN1 = features.mask_BN[..., None].float()
    return (features.grid_BNC.float() * real_BN1).sum(1) / real_BN1.sum(1).clamp(min=1)
