"""The mean of a picture's patches is that of its own patches."""

import torch

from patchword.models.pairs.two_towers import TwoTowers, TwoTowersConfig
from patchword.towers.convolutional import ConvolutionalTower
from patchword.towers.settings import ConvolutionalConfig
from patchword.types import VisualFeatures


def test_padded_cells_have_no_part_in_a_picture():
    """Two pictures of four and six patches in one batch: whatever stands in the padding, each is as alone."""
    torch.manual_seed(0)
    tower = ConvolutionalTower(ConvolutionalConfig(stem=8, widths=(8,), blocks=(0,), size=16))
    model = TwoTowers(TwoTowersConfig(width=12), tower, tower).eval()
    grid_BNC = torch.randn(2, 6, tower.width)
    grid_BNC[0, 4:] = 1e3
    mask_BN = torch.tensor([[True] * 4 + [False] * 2, [True] * 6])
    together = model.pictures_of(VisualFeatures(grid_BNC, None, None, None, mask_BN, None))
    for row, patches in enumerate((4, 6)):
        alone = VisualFeatures(grid_BNC[row : row + 1, :patches], None, None, None, None, None)
        torch.testing.assert_close(together[row : row + 1], model.pictures_of(alone))
