"""A small residual network that can be trained on two CPU cores; it gives a grid of patch features.

Residual learning after He et al. 2016 (arXiv 1512.03385). Every stage halves the resolution and adds `blocks`
residual blocks; the last activation is the grid. Channels-last memory keeps the convolutions on the fast path
of a CPU. Any picture size works: the grid has ceil(size / 2 ** (stages + 1)) rows, so a tower may be trained
on small pictures and used at a larger size.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from patchword.towers.layered import PartlyFrozenModule, Parts, Preprocessing, run_layers
from patchword.towers.settings import ConvolutionalConfig
from patchword.types import VisualFeatures

# Statistics of Flickr8k's training pictures; any tower trained from scratch may use them.
MEAN, STD = (0.46, 0.44, 0.40), (0.27, 0.26, 0.27)


class _Convolution(nn.Sequential):
    """3x3 convolution, batch normalisation and, unless it ends a residual branch, ReLU."""

    def __init__(
        self, inputs: int, outputs: int, stride: int = 1, activate: bool = True, kernel: int = 3
    ) -> None:
        parts: list[nn.Module] = [
            nn.Conv2d(inputs, outputs, kernel, stride, kernel // 2, bias=False),
            nn.BatchNorm2d(outputs),
        ]
        super().__init__(*parts, *([nn.ReLU(inplace=True)] if activate else []))


class ResidualBlock(nn.Module):
    """x + F(x), where F is two 3x3 convolutions.

    A strided block averages each 2x2 cell of x and maps it by a 1x1 convolution.
    """

    def __init__(self, inputs: int, outputs: int, stride: int, drop_path: float) -> None:
        super().__init__()
        first = _Convolution(inputs, outputs, stride)
        last = _Convolution(outputs, outputs, activate=False)
        self.branch = nn.Sequential(first, last)
        # Every block starts as the identity, so that training is stable without warm-up.
        nn.init.zeros_(last[1].weight)
        self.shortcut: nn.Module = nn.Identity()
        if stride != 1 or inputs != outputs:
            self.shortcut = nn.Sequential(
                nn.AvgPool2d(stride, ceil_mode=True), _Convolution(inputs, outputs, activate=False, kernel=1)
            )
        self.drop_path = drop_path

    def forward(self, x_BCHW: Tensor) -> Tensor:
        """Maps features (B, C, h, w) to the resolution of the block."""
        branch_BCHW = self.branch(x_BCHW)
        if self.training and self.drop_path > 0:
            keep_B111 = torch.rand(x_BCHW.shape[0], 1, 1, 1, device=x_BCHW.device) >= self.drop_path
            branch_BCHW = branch_BCHW * keep_B111 / (1 - self.drop_path)
        return torch.relu(self.shortcut(x_BCHW) + branch_BCHW)


class Stage(nn.Sequential):
    """Residual blocks of one resolution, with the interface of a tower's layer."""

    def forward(self, map_BCHW: Tensor, mask: None = None) -> Tensor:
        """Maps features (B, C, h, w) to half the resolution; there is no mask."""
        return super().forward(map_BCHW)


class ConvolutionalTower(PartlyFrozenModule):
    """A convolutional tower, layered like every tower: `embed`, then `layers`, then `finish`.

    The tokens between its layers are feature maps (B, C, h, w).
    """

    has_class_token = False

    def __init__(self, config: ConvolutionalConfig) -> None:
        super().__init__()
        self.config = config
        self.width, self.shared_width, self.depth = config.widths[-1], config.shared_width, len(config.widths)
        self.preprocessing = Preprocessing(
            config.size, MEAN, STD, fit="squash", resample="bicubic", resize=config.size
        )
        self.stem = _Convolution(3, config.stem, stride=2)
        inputs = (config.stem, *config.widths[:-1])
        self.layers = nn.ModuleList()
        for before, width, blocks in zip(inputs, config.widths, config.blocks, strict=True):
            stage = [ResidualBlock(before, width, 2, config.drop_path)]
            stage += [ResidualBlock(width, width, 1, config.drop_path) for _ in range(blocks)]
            self.layers.append(Stage(*stage))
        self.to_shared = (
            None if config.shared_width is None else nn.Linear(self.width, config.shared_width, bias=False)
        )
        ending = () if self.to_shared is None else (self.to_shared,)
        self.freeze_below(
            Parts((self.stem,), tuple((stage,) for stage in self.layers), ending), config.trainable_from
        )

    def embed(self, pixels_B3HW: Tensor) -> tuple[Tensor, None]:
        """Returns the feature map (B, C, h, w) before stage 0; there is no mask."""
        return self.stem(pixels_B3HW.contiguous(memory_format=torch.channels_last)), None

    def finish(self, tokens_BCHW: Tensor) -> VisualFeatures:
        """Returns the features from the last map; patches row by row.

        With `shared_width` they include pooled and aligned features.
        """
        hw = (tokens_BCHW.shape[2], tokens_BCHW.shape[3])
        grid_BNC = tokens_BCHW.flatten(2).transpose(1, 2)
        if self.to_shared is None:
            return VisualFeatures(grid_BNC=grid_BNC, hw=hw)
        # The pool is an average and the map is linear, so mapping each patch gives its aligned token.
        aligned_BNE = self.to_shared(grid_BNC)
        return VisualFeatures(
            grid_BNC=grid_BNC, pooled_BE=aligned_BNE.mean(1), aligned_BNE=aligned_BNE, hw=hw
        )

    def forward(self, pixels_B3HW: Tensor) -> VisualFeatures:
        """Returns the features of B normalised pictures.

        The grid has the pictures' size divided by 2 ** (stages + 1), rounded up.
        """
        return self.resume(*self.embed(pixels_B3HW), start=0)

    def resume(self, map_BCHW: Tensor, mask: None, start: int) -> VisualFeatures:
        """Returns the features from the map before stage `start`."""
        return self.finish(run_layers(self.layers, map_BCHW, mask, start))
