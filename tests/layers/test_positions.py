import math

import torch

from patchword.layers.positions import GridGeometry, grid_positions, sine_positions


def test_sine_positions_by_hand():
    found_TC = sine_positions(torch.tensor([0, 3]), 4)
    torch.testing.assert_close(found_TC[0], torch.tensor([0.0, 1.0, 0.0, 1.0]))
    torch.testing.assert_close(
        found_TC[1], torch.tensor([math.sin(3), math.cos(3), math.sin(0.03), math.cos(0.03)])
    )


def test_a_cell_of_a_grid_carries_its_row_and_its_column():
    found_NC = grid_positions(2, 3, 8)
    assert found_NC.shape == (6, 8)
    torch.testing.assert_close(
        found_NC[4], torch.cat([sine_positions(torch.tensor([row]), 4)[0] for row in (1, 1)])
    )
    assert torch.unique(found_NC.round(decimals=4), dim=0).shape[0] == 6


def test_geometry_depends_on_how_cells_lie_and_not_on_where():
    bias_HNN = GridGeometry(2)(3, 3)
    assert bias_HNN.shape == (2, 9, 9)
    assert torch.isfinite(bias_HNN).all()
    torch.testing.assert_close(bias_HNN[:, 0, 1], bias_HNN[:, 4, 5])  # one step to the right
    assert bias_HNN.min().item() >= math.log(1e-6) - 1e-5
