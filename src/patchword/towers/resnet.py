"""ResNet as a layered tower over transformers' modules; its grid can be pooled to any number of cells.

He et al. 2016 (arXiv 1512.03385). The tokens between its layers (the stages) are feature maps (B, C, h, w).
Show, Attend and Tell reads a 14 x 14 grid for any picture size; adaptive average pooling makes it.
"""

from __future__ import annotations

from torch import Tensor, nn
from transformers import ResNetConfig, ResNetModel

from patchword.towers import layered
from patchword.towers.layered import IMAGENET_MEAN, IMAGENET_STD, PartlyFrozenModule, Parts, Preprocessing
from patchword.towers.settings import ResNetTowerConfig
from patchword.types import VisualFeatures


class ResNetLayer:
    """A view of one stage with the interface of a tower's layer."""

    def __init__(self, block: nn.Module) -> None:
        self.block = block

    def __call__(self, map_BCHW: Tensor, mask: None = None) -> Tensor:
        return self.block(map_BCHW)


class ResNetTower(PartlyFrozenModule):
    """A ResNet tower for any picture size; `hw` of the features says how large the grid is.

    Attributes:
        width: C.
        depth: number of stages.
        has_class_token: False.
        appendable: False.
    """

    shared_width = None
    has_class_token = False
    appendable = False

    def __init__(self, config: ResNetTowerConfig) -> None:
        """Raises ModelError for published weights that do not fit.

        Raises ConfigError for a `trainable_from` beyond the last stage.
        """
        super().__init__()
        self.config = config
        if config.source is not None:
            self.model = layered.load_published(ResNetModel, config.source, config.revision, {})
        else:
            self.model = ResNetModel(ResNetConfig(**(config.architecture or {})))
        self.layers = tuple(ResNetLayer(stage) for stage in self.model.encoder.stages)
        self.width, self.depth = self.model.config.hidden_sizes[-1], len(self.layers)
        self.preprocessing = Preprocessing(
            config.size,
            IMAGENET_MEAN,
            IMAGENET_STD,
            fit="crop",
            resample="bicubic",
            resize=round(config.size / 0.875),
        )
        blocks = tuple((layer.block,) for layer in self.layers)
        self.freeze_below(Parts((self.model.embedder,), blocks, ()), config.trainable_from)

    @classmethod
    def from_architecture(
        cls,
        architecture: ResNetConfig,
        grid: tuple[int, int] | None = None,
        trainable_from: int | None = None,
    ) -> ResNetTower:
        """Builds the tower with random weights from a transformers configuration."""
        return cls(
            ResNetTowerConfig(
                architecture=architecture.to_diff_dict(), grid=grid, trainable_from=trainable_from
            )
        )

    @classmethod
    def from_pretrained(
        cls,
        source: str,
        revision: str | None = None,
        grid: tuple[int, int] | None = None,
        trainable_from: int | None = None,
    ) -> ResNetTower:
        """Loads published weights from a folder or by a hub id."""
        return cls(
            ResNetTowerConfig(source=str(source), revision=revision, grid=grid, trainable_from=trainable_from)
        )

    def embed(self, pixels_B3HW: Tensor) -> tuple[Tensor, None]:
        """Returns the map (B, C, H / 4, W / 4) before stage 0; there is no mask."""
        return self.model.embedder(pixels_B3HW.to(self.model.dtype)), None

    def finish(self, map_BCHW: Tensor) -> VisualFeatures:
        """Pools the map to the configured number of cells and returns its patches row by row."""
        if self.config.grid is not None:
            map_BCHW = nn.functional.adaptive_avg_pool2d(map_BCHW, self.config.grid)
        return VisualFeatures(
            grid_BNC=map_BCHW.flatten(2).transpose(1, 2), hw=(map_BCHW.shape[2], map_BCHW.shape[3])
        )

    def forward(self, pixels_B3HW: Tensor) -> VisualFeatures:
        """Returns the features of B normalised pictures."""
        return self.resume(*self.embed(pixels_B3HW), start=0)

    def resume(self, map_BCHW: Tensor, mask: None, start: int) -> VisualFeatures:
        """Returns the features from the map before layer `start`."""
        return self.finish(layered.run_layers(self.layers, map_BCHW, mask, start))
