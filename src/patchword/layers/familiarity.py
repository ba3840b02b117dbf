"""Out-of-distribution detection: how far a picture lies from the training pictures of a model.

    distance   d(x) = sqrt((x - m)^T S^-1 (x - m))     (Lee et al. 2018, arXiv 1807.03888, eq. 2, one class)
               x: mean patch of the tower; m and S: mean and covariance over training pictures
    limit      1.25 times the largest distance among held-out pictures

A classifier is as confident on out-of-distribution pictures as on others, but its tower's features lie far
from those of the training pictures.

Shape legend: B images, N patches, C width of the tower.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from patchword.layers.features import masked_mean
from patchword.types import VisualFeatures

_MARGIN = 1.25
# Share of the mean variance that is added to every variance, so that directions in which the training
# pictures hardly differ do not dominate the distance.
_SHRINKAGE = 0.01


class Familiarity(nn.Module):
    """Mahalanobis distance of mean patches, with a limit beyond which a picture is out-of-distribution.

    Mean, whitening and limit are buffers, saved with the model. Before `fit`, every picture is
    in-distribution.
    """

    def __init__(self, width: int) -> None:
        super().__init__()
        self.register_buffer("mean_C", torch.zeros(width))
        self.register_buffer("whiten_CC", torch.zeros(width, width))
        self.register_buffer("limit", torch.tensor(math.inf))

    @torch.no_grad()
    def fit(self, training_BC: Tensor, others_BC: Tensor) -> None:
        """Fits mean and covariance to the mean patches of training pictures, and the limit to held-out ones.

        Both arguments are results of `mean_patch`.
        """
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
        """Returns the distance (B,) of each mean patch."""
        return ((pictures_BC.float() - self.mean_C) @ self.whiten_CC).norm(dim=1)


def mean_patch(features: VisualFeatures) -> Tensor:
    """Returns the mean of each picture's real patches, (B, C)."""
    return masked_mean(features.grid_BNC.float(), features.mask_BN)
