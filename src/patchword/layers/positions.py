"""Fixed sine positions along a sentence and over a grid of patches, and the relative geometry of a grid.

Shape legend: T positions, N cells of a grid, C width, H heads, F features of a pair of cells.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

_CLOSEST = 1e-3  # distance of two cells in the same row or column, so that the logarithm exists
_GEOMETRY_FEATURES = 64
_GEOMETRY_SCALE = 100.0
_GEOMETRY_WAVELENGTH = 1000.0


def sine_positions(positions_T: Tensor, width: int) -> Tensor:
    """Sine and cosine of each position, interleaved, (T, width) (Vaswani 2017, section 3.5).

    `positions_T` may hold any numbers; `width` must be even.
    """
    frequencies = 10000.0 ** (
        -torch.arange(0, width, 2, dtype=torch.float32, device=positions_T.device) / width
    )
    angles_TF = positions_T.to(torch.float32)[:, None] * frequencies
    return torch.stack((angles_TF.sin(), angles_TF.cos()), dim=-1).flatten(1)


def grid_positions(rows: int, columns: int, width: int, device: torch.device | None = None) -> Tensor:
    """Positions of a grid, row by row, (rows * columns, width).

    The first half of the channels encodes the row, the second the column. `width` must be a multiple of four.
    """
    rows_RC = sine_positions(torch.arange(rows, device=device), width // 2)
    columns_RC = sine_positions(torch.arange(columns, device=device), width // 2)
    return torch.cat((rows_RC.repeat_interleave(columns, dim=0), columns_RC.repeat(rows, 1)), dim=1)


class GridGeometry(nn.Module):
    """An attention bias for each head and pair of cells, from their relative position.

    It is log ReLU(W e(dx, dy, dw, dh)), where e holds sines and cosines of the log distances in cells
    (RSTNet, Zhang 2021, after Hu 2018). All cells of a grid have the same size, so dw = dh = 0.
    """

    def __init__(self, heads: int) -> None:
        super().__init__()
        self.weigh = nn.Linear(_GEOMETRY_FEATURES, heads)

    def forward(self, rows: int, columns: int) -> Tensor:
        """Returns the additive bias (H, N, N)."""
        weights_NNH = self.weigh(self._features(rows, columns)).relu()
        return weights_NNH.clamp(min=1e-6).log().permute(2, 0, 1)

    def _features(self, rows: int, columns: int) -> Tensor:
        device = self.weigh.weight.device
        y_N = torch.arange(rows, device=device, dtype=torch.float32).repeat_interleave(columns)
        x_N = torch.arange(columns, device=device, dtype=torch.float32).repeat(rows)
        apart_NN2 = (
            torch.stack((x_N[:, None] - x_N, y_N[:, None] - y_N), dim=-1).abs().clamp(min=_CLOSEST).log()
        )
        apart_NN4 = torch.cat((apart_NN2, torch.zeros_like(apart_NN2)), dim=-1)
        waves = _GEOMETRY_FEATURES // 8
        frequencies = _GEOMETRY_SCALE * _GEOMETRY_WAVELENGTH ** (
            -torch.arange(waves, device=device, dtype=torch.float32) / waves
        )
        angles_NNF = (apart_NN4[..., None] * frequencies).flatten(2)
        return torch.cat((angles_NNF.sin(), angles_NNF.cos()), dim=-1).to(self.weigh.weight.dtype)
