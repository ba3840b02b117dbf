"""ViT and Swin as layered towers over transformers' modules.

ViT: Dosovitskiy et al. 2021 (arXiv 2010.11929). Swin: Liu et al. 2021 (arXiv 2103.14030). Swin's layers
attend inside windows and shrink the grid, so its tokens cannot be joined by others, and it has no class
token.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from transformers import SwinConfig, SwinModel, ViTConfig, ViTModel

from patchword.layers.adapters import Adapter
from patchword.towers import layered
from patchword.towers.layered import IMAGENET_MEAN, IMAGENET_STD, PartlyFrozenModule, Parts, Preprocessing
from patchword.towers.settings import SwinTowerConfig, VitTowerConfig
from patchword.types import Projections, VisualFeatures


class VitLayer:
    """A view of one pre-norm block with the interface of `types.TowerLayer`.

    It computes x + attention(LN x), then + MLP(LN ...). The output of its attention passes an adapter where
    there is one.
    """

    def __init__(self, block: nn.Module, adapter: Adapter | None = None) -> None:
        self.block, self.adapter = block, adapter

    def __call__(self, tokens_BNC: Tensor, mask_BN: Tensor | None = None) -> Tensor:
        return self.attend(tokens_BNC, *self.project(tokens_BNC), mask_BN)

    def project(self, tokens_BNC: Tensor) -> Projections:
        """See `types.TowerLayer.project`."""
        attention, heads = self.block.attention, self.block.attention.num_attention_heads
        normed_BNC = self.block.layernorm_before(tokens_BNC)
        maps = (attention.q_proj, attention.k_proj, attention.v_proj)
        return Projections(*(layered.split_heads(to_heads(normed_BNC), heads) for to_heads in maps))

    def attend(
        self, tokens_BQC: Tensor, queries: Tensor, keys: Tensor, values: Tensor, mask_BN: Tensor | None = None
    ) -> Tensor:
        """See `types.TowerLayer.attend`."""
        block = self.block
        dropout = block.attention.attention_dropout if block.training else 0.0
        attended_BQC = block.attention.o_proj(layered.attend_heads(queries, keys, values, mask_BN, dropout))
        if self.adapter is not None:
            attended_BQC = self.adapter(attended_BQC)
        tokens_BQC = tokens_BQC + block.dropout(attended_BQC)
        return tokens_BQC + block.dropout(block.mlp(block.layernorm_after(tokens_BQC)))


class VitTower(PartlyFrozenModule):
    """A ViT tower. The class token comes first, then the patches row by row.

    Attributes:
        width: C.
        depth: number of layers.
        hw: rows and columns of the grid.
        picture_hw: height and width of the pictures in pixels.
        has_class_token: True.
        appendable: True; a layer takes any number of tokens, and every token sees all others.
    """

    shared_width = None
    has_class_token = True
    appendable = True

    def __init__(self, config: VitTowerConfig) -> None:
        """Raises ModelError for published weights that do not fit.

        Raises ConfigError for a `trainable_from` beyond the last layer.
        """
        super().__init__()
        self.config = config
        if config.source is not None:
            self.model = layered.load_published(
                ViTModel, config.source, config.revision, {"add_pooling_layer": False}
            )
        else:
            self.model = ViTModel(ViTConfig(**(config.architecture or {})), add_pooling_layer=False)
        self.width, self.depth = self.model.config.hidden_size, len(self.model.layers)
        self.adapters, given = layered.last_adapters(config.adapters, self.depth, self.width)
        self.layers = tuple(
            VitLayer(block, adapter) for block, adapter in zip(self.model.layers, given, strict=True)
        )
        patches = self.model.embeddings.patch_embeddings
        height, width = patches.image_size
        self.picture_hw = (height, width)
        patch_height, patch_width = patches.patch_size
        self.hw = (height // patch_height, width // patch_width)
        half, side = (0.5, 0.5, 0.5), self.picture_hw[0]
        self.preprocessing = Preprocessing(
            size=side, mean=half, std=half, fit="squash", resample="bilinear", resize=side
        )
        blocks = tuple((layer.block,) for layer in self.layers)
        self.freeze_below(
            Parts((self.model.embeddings,), blocks, (self.model.layernorm,)), config.trainable_from
        )

    @classmethod
    def from_architecture(cls, architecture: ViTConfig, trainable_from: int | None = None) -> VitTower:
        """Builds the tower with random weights from a transformers configuration."""
        return cls(VitTowerConfig(architecture=architecture.to_diff_dict(), trainable_from=trainable_from))

    @classmethod
    def from_pretrained(
        cls, source: str, revision: str | None = None, trainable_from: int | None = None
    ) -> VitTower:
        """Loads published weights from a folder or by a hub id."""
        return cls(VitTowerConfig(source=str(source), revision=revision, trainable_from=trainable_from))

    def embed(self, pixels_B3HW: Tensor) -> tuple[Tensor, None]:
        """Returns the tokens (B, 1 + N, C) before layer 0; there is no mask.

        Raises ModelError for pictures of another size.
        """
        layered.check_picture_size(pixels_B3HW, *self.picture_hw, "ViT")
        return self.model.embeddings(pixels_B3HW.to(self.model.dtype)), None

    def embed_hidden(self, pixels_B3HW: Tensor, hidden: Tensor, mark_C: Tensor) -> tuple[Tensor, None]:
        """As `embed`, with `mark_C` in the place of the patches that `hidden` (B, N) marks; their positions
        stay."""
        tokens_BNC, _ = self.embed(pixels_B3HW)
        marked_1NC = mark_C + self.model.embeddings.position_embeddings[:, 1:]
        patches_BNC = torch.where(hidden[..., None], marked_1NC, tokens_BNC[:, 1:])
        return torch.cat((tokens_BNC[:, :1], patches_BNC), 1), None

    @property
    def feed_forwards(self) -> tuple[nn.Module, ...]:
        """Of each layer the module whose output the last residual is added to."""
        return tuple(layer.block.mlp for layer in self.layers)

    def finish(self, tokens_BNC: Tensor) -> VisualFeatures:
        """Applies the last LayerNorm and separates the class token from the grid."""
        normed_BNC = self.model.layernorm(tokens_BNC)
        return VisualFeatures(grid_BNC=normed_BNC[:, 1:], class_BC=normed_BNC[:, 0], hw=self.hw)

    def forward(self, pixels_B3HW: Tensor) -> VisualFeatures:
        """Returns the features of B normalised pictures."""
        return self.resume(*self.embed(pixels_B3HW), start=0)

    def resume(self, tokens_BNC: Tensor, mask: None, start: int) -> VisualFeatures:
        """Returns the features from the tokens before layer `start`."""
        return self.finish(layered.run_layers(self.layers, tokens_BNC, mask, start))


class SwinLayer:
    """A view of one windowed block on a grid of `hw` cells.

    It includes the merging of 2x2 cells that follows the last block of a stage.
    """

    def __init__(self, block: nn.Module, hw: tuple[int, int], merging: nn.Module | None) -> None:
        self.block, self.hw, self.merging = block, hw, merging

    def __call__(self, tokens_BNC: Tensor, mask_BN: Tensor | None = None) -> Tensor:
        tokens_BNC = self.block(tokens_BNC, self.hw)[0]
        return tokens_BNC if self.merging is None else self.merging(tokens_BNC, self.hw)


class SwinTower(PartlyFrozenModule):
    """A Swin tower. Its layers are the blocks of all stages in order.

    After each stage but the last, the width doubles and the grid halves.

    Attributes:
        width: C of the last grid.
        depth: number of blocks.
        hw: rows and columns of the last grid.
        picture_hw: height and width of the pictures in pixels.
        has_class_token: False.
        appendable: False; windows have no place for further tokens.
    """

    shared_width = None
    has_class_token = False
    appendable = False

    def __init__(self, config: SwinTowerConfig) -> None:
        """Raises ModelError for published weights that do not fit.

        Raises ConfigError for a `trainable_from` beyond the last layer.
        """
        super().__init__()
        self.config = config
        if config.source is not None:
            self.model = layered.load_published(
                SwinModel, config.source, config.revision, {"add_pooling_layer": False}
            )
        else:
            self.model = SwinModel(SwinConfig(**(config.architecture or {})), add_pooling_layer=False)
        views: list[SwinLayer] = []
        hw = tuple(self.model.embeddings.patch_grid)
        for stage in self.model.encoder.layers:
            views += [
                SwinLayer(block, hw, stage.downsample if block is stage.blocks[-1] else None)
                for block in stage.blocks
            ]
            if stage.downsample is not None:
                hw = ((hw[0] + 1) // 2, (hw[1] + 1) // 2)
        self.layers = tuple(views)
        self.width, self.depth, self.hw = self.model.num_features, len(views), hw
        size = self.model.config.image_size
        height, width = (size, size) if isinstance(size, int) else size
        self.picture_hw = (height, width)
        side = self.picture_hw[0]
        self.preprocessing = Preprocessing(
            side, IMAGENET_MEAN, IMAGENET_STD, fit="squash", resample="bicubic", resize=side
        )
        blocks = tuple(
            (layer.block,) if layer.merging is None else (layer.block, layer.merging) for layer in views
        )
        self.freeze_below(
            Parts((self.model.embeddings,), blocks, (self.model.layernorm,)), config.trainable_from
        )

    @classmethod
    def from_architecture(cls, architecture: SwinConfig, trainable_from: int | None = None) -> SwinTower:
        """Builds the tower with random weights from a transformers configuration."""
        return cls(SwinTowerConfig(architecture=architecture.to_diff_dict(), trainable_from=trainable_from))

    @classmethod
    def from_pretrained(
        cls, source: str, revision: str | None = None, trainable_from: int | None = None
    ) -> SwinTower:
        """Loads published weights from a folder or by a hub id."""
        return cls(SwinTowerConfig(source=str(source), revision=revision, trainable_from=trainable_from))

    def embed(self, pixels_B3HW: Tensor) -> tuple[Tensor, None]:
        """Returns the tokens (B, cells, C of the first stage) before block 0; there is no mask.

        Raises ModelError for pictures of another size.
        """
        layered.check_picture_size(pixels_B3HW, *self.picture_hw, "Swin")
        return self.model.embeddings(pixels_B3HW.to(self.model.dtype))[0], None

    def finish(self, tokens_BNC: Tensor) -> VisualFeatures:
        """Applies the last LayerNorm."""
        return VisualFeatures(grid_BNC=self.model.layernorm(tokens_BNC), hw=self.hw)

    def forward(self, pixels_B3HW: Tensor) -> VisualFeatures:
        """Returns the features of B normalised pictures."""
        return self.resume(*self.embed(pixels_B3HW), start=0)

    def resume(self, tokens_BNC: Tensor, mask: None, start: int) -> VisualFeatures:
        """Returns the features from the tokens before layer `start`."""
        return self.finish(layered.run_layers(self.layers, tokens_BNC, mask, start))
