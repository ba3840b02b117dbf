"""CLIP's two towers, layered over transformers' modules, with patch tokens in the text space.

Radford et al. 2021 (arXiv 2103.00020). CLIP trains only its class token to lie in the text space, so
`ln_post` and the projection of an ordinary patch output do not give an aligned token. The terms F(v_i) that
CLIP's last attention sums do (Zhou, Loy, Dai 2022, MaskCLIP, arXiv 2112.01071, section 3.2). There are three
readings of them, which are different functions of the input x of the last layer, with x' = LN1(x) and v = x'
W_v + b_v:

    value_only            LN_post(v W_o + b_o) P                                       the paper's formula
    value_with_residual   y = x + v W_o + b_o;  y = y + MLP(LN2(y));  LN_post(y) P     the authors' code
    correlative           as value_with_residual, but v is replaced by
                          (softmax(q q^T / sqrt D) + softmax(k k^T / sqrt D)) v
                          (Wang, Mei, Yuille 2024, SCLIP, arXiv 2312.01597)

Pooled and aligned features are not normalised; only their direction matters. An adapter of the last layer
follows W_o in all three.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from transformers import (
    CLIPTextConfig,
    CLIPTextModelWithProjection,
    CLIPVisionConfig,
    CLIPVisionModelWithProjection,
)

from patchword.errors import ModelError
from patchword.layers.adapters import Adapter
from patchword.towers import layered
from patchword.towers.layered import PartlyFrozenModule, Parts, Preprocessing
from patchword.towers.settings import Aligned, ClipTextTowerConfig, ClipTowerConfig
from patchword.types import Projections, TextFeatures, VisualFeatures

CLIP_MEAN, CLIP_STD = (0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711)


class ClipLayer:
    """A view of one pre-norm block with the interface of `types.TowerLayer`.

    The output of its attention passes an adapter where the tower has one for this block.
    """

    def __init__(self, block: nn.Module, adapter: Adapter | None = None) -> None:
        self.block, self.adapter = block, adapter

    def __call__(self, tokens_BNC: Tensor, mask_BN: Tensor | None = None) -> Tensor:
        return self.attend(tokens_BNC, *self.project(tokens_BNC), mask_BN)

    def project(self, tokens_BNC: Tensor) -> Projections:
        """See `types.TowerLayer.project`."""
        attention = self.block.self_attn
        normed_BNC = self.block.layer_norm1(tokens_BNC)
        maps = (attention.q_proj, attention.k_proj, attention.v_proj)
        return Projections(
            *(layered.split_heads(to_heads(normed_BNC), attention.num_heads) for to_heads in maps)
        )

    def attend(
        self, tokens_BQC: Tensor, queries: Tensor, keys: Tensor, values: Tensor, mask_BN: Tensor | None = None
    ) -> Tensor:
        """See `types.TowerLayer.attend`."""
        dropout = self.block.self_attn.dropout if self.block.training else 0.0
        return self.add(
            tokens_BQC, self.output(layered.attend_heads(queries, keys, values, mask_BN, dropout))
        )

    def output(self, joined_BQC: Tensor) -> Tensor:
        """Applies the attention's output projection, and the adapter if there is one, to the joined heads."""
        attended_BQC = self.block.self_attn.out_proj(joined_BQC)
        return attended_BQC if self.adapter is None else self.adapter(attended_BQC)

    def add(self, tokens_BQC: Tensor, attended_BQC: Tensor) -> Tensor:
        """Applies the rest of the block: the residual sum, then the MLP with its own residual."""
        tokens_BQC = tokens_BQC + attended_BQC
        return tokens_BQC + self.block.mlp(self.block.layer_norm2(tokens_BQC))


class CausalClipLayer:
    """A view of one block of the text tower: a token attends to itself and to earlier tokens."""

    def __init__(self, block: nn.Module) -> None:
        self.block = block
        self.open = ClipLayer(block)

    def __call__(self, tokens_BLC: Tensor, mask_BL: Tensor | None = None) -> Tensor:
        length = tokens_BLC.shape[1]
        sees_1LL = torch.ones(1, length, length, dtype=torch.bool, device=tokens_BLC.device).tril()
        sees_BLL = sees_1LL if mask_BL is None else sees_1LL & mask_BL[:, None, :]
        return self.open.attend(tokens_BLC, *self.open.project(tokens_BLC), sees_BLL)


class ClipTower(PartlyFrozenModule):
    """CLIP's vision tower. The class token comes first, then the patches row by row.

    Attributes:
        width: C of the grid.
        shared_width: E of the text space.
        depth: number of layers.
        hw: rows and columns of the grid.
        picture_hw: height and width of the pictures in pixels.
        has_class_token: True.
        appendable: True; a layer takes any number of tokens, and every token sees all others.
    """

    has_class_token = True
    appendable = True

    def __init__(self, config: ClipTowerConfig) -> None:
        """Raises ModelError for published weights that do not fit.

        Raises ConfigError for a `trainable_from` beyond the last layer.
        """
        super().__init__()
        self.config = config
        if config.source is not None:
            self.model = layered.load_published(
                CLIPVisionModelWithProjection, config.source, config.revision, {}
            )
        else:
            self.model = CLIPVisionModelWithProjection(CLIPVisionConfig(**(config.architecture or {})))
        vision, architecture = self.model.vision_model, self.model.config
        self.adapters, given = layered.last_adapters(
            config.adapters, architecture.num_hidden_layers, architecture.hidden_size
        )
        self.layers = tuple(
            ClipLayer(block, adapter) for block, adapter in zip(vision.encoder.layers, given, strict=True)
        )
        self.width, self.shared_width, self.depth = (
            architecture.hidden_size,
            self.model.visual_projection.out_features,
            len(self.layers),
        )
        side, cells = architecture.image_size, architecture.image_size // architecture.patch_size
        self.picture_hw, self.hw = (side, side), (cells, cells)
        self.preprocessing = Preprocessing(
            side, CLIP_MEAN, CLIP_STD, fit="crop", resample="bicubic", resize=side
        )
        blocks = tuple((layer.block,) for layer in self.layers)
        ending = (vision.post_layernorm, self.model.visual_projection)
        self.freeze_below(
            Parts((vision.embeddings, vision.pre_layrnorm), blocks, ending), config.trainable_from
        )

    @classmethod
    def from_architecture(
        cls, architecture: CLIPVisionConfig, aligned: Aligned | None = None, trainable_from: int | None = None
    ) -> ClipTower:
        """Builds the tower with random weights from a transformers configuration."""
        return cls(
            ClipTowerConfig(
                architecture=architecture.to_diff_dict(), aligned=aligned, trainable_from=trainable_from
            )
        )

    @classmethod
    def from_pretrained(
        cls,
        source: str,
        revision: str | None = None,
        aligned: Aligned | None = None,
        trainable_from: int | None = None,
    ) -> ClipTower:
        """Loads published weights from a folder or by a hub id: any checkpoint of a CLIPModel."""
        return cls(
            ClipTowerConfig(
                source=str(source), revision=revision, aligned=aligned, trainable_from=trainable_from
            )
        )

    def embed(self, pixels_B3HW: Tensor) -> tuple[Tensor, None]:
        """Returns the tokens (B, 1 + N, C) before layer 0; there is no mask.

        Raises ModelError for pictures of another size.
        """
        layered.check_picture_size(pixels_B3HW, *self.picture_hw, "CLIP")
        vision = self.model.vision_model
        return vision.pre_layrnorm(vision.embeddings(pixels_B3HW)), None

    def finish(self, tokens_BNC: Tensor, before_last_BNC: Tensor | None = None) -> VisualFeatures:
        """Returns the features from the output of the last layer.

        Aligned patches and a penultimate grid also need the input of the last layer, `before_last_BNC`;
        without it there are no aligned patches.

        Raises:
            ModelError: the grid is the penultimate one, and `before_last_BNC` is not given.
        """
        pooled_BE = self.model.visual_projection(self.model.vision_model.post_layernorm(tokens_BNC[:, 0]))
        source_BNC = tokens_BNC
        if self.config.grid == "penultimate":
            if before_last_BNC is None:
                raise ModelError(
                    "the grid of this CLIP tower is the input of its last layer: pass it to finish as "
                    "before_last_BNC"
                )
            source_BNC = before_last_BNC
        aligned_BNE = None
        if self.config.aligned is not None and before_last_BNC is not None:
            aligned_BNE = self.align(before_last_BNC, self.config.aligned)
        return VisualFeatures(source_BNC[:, 1:], source_BNC[:, 0], pooled_BE, aligned_BNE, hw=self.hw)

    def align(self, before_last_BNC: Tensor, how: Aligned) -> Tensor:
        """Returns patch tokens in the text space (B, N, E), without the class token.

        `before_last_BNC` is the input of the last layer; the top of this file gives the formulas.
        """
        last = self.layers[-1]
        queries_BHND, keys_BHND, values_BHND = last.project(before_last_BNC)
        if how == "correlative":
            values_BNC = layered.attend_heads(queries_BHND, queries_BHND, values_BHND, None)
            values_BNC = values_BNC + layered.attend_heads(keys_BHND, keys_BHND, values_BHND, None)
        else:
            values_BNC = values_BHND.transpose(1, 2).flatten(2)
        dense_BNC = last.output(values_BNC)
        if how != "value_only":
            dense_BNC = last.add(before_last_BNC, dense_BNC)
        return self.model.visual_projection(self.model.vision_model.post_layernorm(dense_BNC[:, 1:]))

    def forward(self, pixels_B3HW: Tensor) -> VisualFeatures:
        """Returns the features of B normalised pictures."""
        tokens_BNC, mask = self.embed(pixels_B3HW)
        return self.resume(tokens_BNC, mask, 0)

    def resume(self, tokens_BNC: Tensor, mask: None, start: int) -> VisualFeatures:
        """Returns the features from the tokens before layer `start`, for example stored ones.

        `start` is at most the number of the last layer.
        """
        before_last_BNC = layered.run_layers(self.layers[:-1], tokens_BNC, mask, start)
        return self.finish(self.layers[-1](before_last_BNC, mask), before_last_BNC)


class ClipTextTower(PartlyFrozenModule):
    """CLIP's text tower: causal, pooled at the end-of-text token.

    Attributes:
        width: C.
        shared_width: E.
        depth: number of layers.
        max_length: longest text in tokens.
        vocabulary_size: number of rows of the embedding.
        has_class_token: False.
        appendable: False; a token does not see what is appended after it.
    """

    has_class_token = False
    appendable = False

    def __init__(self, config: ClipTextTowerConfig) -> None:
        """Raises ModelError for published weights that do not fit.

        Raises ConfigError for a `trainable_from` beyond the last layer.
        """
        super().__init__()
        self.config = config
        if config.source is not None:
            self.model = layered.load_published(
                CLIPTextModelWithProjection, config.source, config.revision, {}
            )
        else:
            self.model = CLIPTextModelWithProjection(CLIPTextConfig(**(config.architecture or {})))
        text, architecture = self.model.text_model, self.model.config
        self.layers = tuple(CausalClipLayer(block) for block in text.encoder.layers)
        self.width, self.shared_width, self.depth = (
            architecture.hidden_size,
            self.model.text_projection.out_features,
            len(self.layers),
        )
        self.max_length, self.vocabulary_size = architecture.max_position_embeddings, architecture.vocab_size
        blocks = tuple((layer.block,) for layer in self.layers)
        ending = (text.final_layer_norm, self.model.text_projection)
        self.freeze_below(Parts((text.embeddings,), blocks, ending), config.trainable_from)

    @classmethod
    def from_architecture(
        cls, architecture: CLIPTextConfig, trainable_from: int | None = None
    ) -> ClipTextTower:
        """Builds the tower with random weights from a transformers configuration."""
        return cls(
            ClipTextTowerConfig(architecture=architecture.to_diff_dict(), trainable_from=trainable_from)
        )

    @classmethod
    def from_pretrained(
        cls, source: str, revision: str | None = None, trainable_from: int | None = None
    ) -> ClipTextTower:
        """Loads published weights from a folder or by a hub id: any checkpoint of a CLIPModel."""
        return cls(ClipTextTowerConfig(source=str(source), revision=revision, trainable_from=trainable_from))

    def embed(self, ids_BL: Tensor, mask_BL: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Returns the tokens (B, L, C) before layer 0, and the mask (B, L).

        The mask is True up to the first end-of-text token, where the text is pooled.

        Args:
            mask_BL: further restriction to real tokens; transformers' CLIP tokenizer needs none.
        Raises:
            ModelError: a text is longer than the tower's table of positions, or has no end-of-text token.
        """
        if ids_BL.shape[1] > self.max_length:
            raise ModelError(
                f"a text has {ids_BL.shape[1]} tokens and CLIP's text tower takes at most "
                f"{self.max_length}: cut it"
            )
        end = self.model.config.eos_token_id
        # Old checkpoints say 2, but their end-of-text token is the one with the highest id (transformers has
        # the same exception).
        is_end_BL = ids_BL == (ids_BL.max(1, keepdim=True).values if end == 2 else end)
        if not bool(is_end_BL.any(1).all()):
            row = int((~is_end_BL.any(1)).nonzero()[0])
            raise ModelError(
                f"text {row} of the batch has no end-of-text token (id {end}): CLIP is pooled there; do not "
                "cut it off"
            )
        real_BL = (is_end_BL.cumsum(1) - is_end_BL.int()) == 0
        if mask_BL is not None:
            real_BL = real_BL & mask_BL.bool()
        return self.model.text_model.embeddings(input_ids=ids_BL), real_BL

    def finish(self, tokens_BLC: Tensor, mask_BL: Tensor) -> TextFeatures:
        """Applies the last LayerNorm; pooled is the projection of the last real token."""
        normed_BLC = self.model.text_model.final_layer_norm(tokens_BLC)
        last_B = mask_BL.shape[1] - 1 - mask_BL.int().flip(1).argmax(1)
        rows_B = torch.arange(len(last_B), device=last_B.device)
        return TextFeatures(normed_BLC, self.model.text_projection(normed_BLC[rows_B, last_B]), mask_BL)

    def forward(self, ids_BL: Tensor, mask_BL: Tensor | None = None) -> TextFeatures:
        """Returns the features of B texts; the arguments are those of `embed`."""
        tokens_BLC, mask_BL = self.embed(ids_BL, mask_BL)
        return self.finish(layered.run_layers(self.layers, tokens_BLC, mask_BL), mask_BL)
