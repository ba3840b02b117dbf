import pytest
import torch

from patchword.layers.familiarity import Familiarity, mean_patch
from patchword.types import VisualFeatures


def test_distance_is_that_of_mahalanobis():
    """Two independent directions with deviations 2 and 1: (4, 3) lies 2 and 3 of them away."""
    generator = torch.Generator().manual_seed(0)
    known_BC = torch.randn(200_000, 2, generator=generator) * torch.tensor([2.0, 1.0]) + 5
    familiarity = Familiarity(2)
    familiarity.fit(known_BC, known_BC[:100])
    distances = familiarity.distance(torch.tensor([[9.0, 8.0], [5.0, 5.0]]))
    assert distances[0].item() == pytest.approx((2**2 + 3**2) ** 0.5, rel=0.02)  # the shrinkage takes 1 %
    assert distances[1].item() < 0.02
    assert familiarity.limit.item() == pytest.approx(1.25 * familiarity.distance(known_BC[:100]).max().item())


def test_directions_in_which_training_never_varies_do_not_blow_up():
    known_BC = torch.randn(50, 4, generator=torch.Generator().manual_seed(1)) * torch.tensor(
        [1.0, 1.0, 0.0, 0.0]
    )
    familiarity = Familiarity(4)
    assert (
        familiarity.distance(known_BC) < familiarity.limit
    ).all()  # not fitted yet: everything is familiar
    familiarity.fit(known_BC, known_BC)
    assert torch.isfinite(familiarity.distance(known_BC + 1)).all()
    assert familiarity.distance(known_BC + torch.tensor([0.0, 0.0, 9.0, 0.0])).min() > familiarity.limit
    assert torch.isfinite(familiarity.whiten_CC.half()).all()


def test_padding_is_not_part_of_the_mean():
    grid_BNC = torch.arange(12.0).view(1, 4, 3)
    mask_BN = torch.tensor([[True, True, False, False]])
    assert torch.equal(mean_patch(VisualFeatures(grid_BNC, mask_BN=mask_BN)), grid_BNC[:, :2].mean(1))
