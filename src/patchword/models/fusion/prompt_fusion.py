"""PMF: two frozen towers label a picture with its text, and exchange messages through learned prompts.

Li, Quan, Zhu, Yang: "Efficient Multimodal Fusion via Interactive Prompting", CVPR 2023 (arXiv 2304.06306).
The lower layers of both towers run alone. In each of the last F layers, with l_v and l_t the frozen layers
and z_v, z_t the tokens before them:

    1 query     h_v = rows of QP_v in l_v([z_v; QCP_v; QP_v])                                likewise h_t
    2 map       y_vt = W2 ReLU(W1 h_v + b1) + b2, as rows of the text tower                  likewise y_tv
    3 fusion    z_v <- rows of z_v in l_v([z_v; FCP_v; y_tv])                                likewise z_t

Both directions start from the tokens before the layer, so neither comes first. The same frozen layer serves
both stages. The class tokens after the last layer pass one linear head each, and the logits are averaged.

The code skips work whose result is not used. `layers/prompts.py` lists the rows that are not computed, and
the last layer computes only its class tokens. Nothing before the first fused layer depends on a trained
parameter, so no activations are kept there, and its tokens can be stored once (`lower`) and read in every
epoch (`fuse`). The public code forgets to train the fusion-context prompts; here they are trained.
docs/models/prompt-fusion.md has the mapping and the parameter counts.

Shape legend (in addition to `types.py`): Y classes, Q query prompts.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Literal, NamedTuple, Protocol, cast

import torch
from pydantic import BaseModel, Field, model_validator
from torch import Tensor, nn

from patchword.errors import ConfigError, ModelError
from patchword.layers.attention import attend, hide
from patchword.layers.prompts import PromptMap, Prompts, fused_rows, query_attention, query_rows
from patchword.types import Projections, TextFeatures, TowerLayer, VisualFeatures

PerLayer = int | tuple[int, ...]


class ImageTower(Protocol):
    """The image tower that PMF needs: it has layers, a class token, and attention that prompts can join."""

    width: int
    depth: int
    has_class_token: bool
    appendable: bool
    hw: tuple[int, int]
    """Rows and columns of the grid."""

    @property
    def layers(self) -> Sequence[TowerLayer]:
        """The layers between `embed` and `finish`."""
        ...

    def embed(self, pixels_B3HW: Tensor) -> tuple[Tensor, Tensor | None]:
        """Returns the tokens (B, N, C) before the first layer, and their mask."""

    def finish(self, tokens_BNC: Tensor) -> VisualFeatures:
        """Returns the features from the tokens after the last layer."""


class TextTower(Protocol):
    """The text tower that PMF needs; token 0 is its class token."""

    width: int
    depth: int
    has_class_token: bool
    appendable: bool

    @property
    def layers(self) -> Sequence[TowerLayer]:
        """The layers between `embed` and `finish`."""
        ...

    def embed(
        self, ids_BL: Tensor, mask_BL: Tensor | None, types_BL: Tensor | None
    ) -> tuple[Tensor, Tensor | None]:
        """Returns the tokens (B, L, C) before the first layer, and their mask."""

    def finish(self, tokens_BLC: Tensor, mask_BL: Tensor | None) -> TextFeatures:
        """Returns the features from the tokens after the last layer."""


_LONGEST = 65536
"""Prompts in a layer, or width of a map, at most."""


class PromptFusionConfig(BaseModel, extra="forbid", frozen=True):
    """Sizes of PMF.

    `query`, `query_context`, `fusion_context` and `map_width` are the same in every fused layer, or one per
    fused layer, lowest first.
    """

    kind: Literal["prompt_fusion"] = "prompt_fusion"
    classes: int = Field(gt=0, le=10_000_000, description="number of labels")
    fused_layers: int = Field(
        2,
        ge=0,
        le=512,
        description="how many layers are fused, counted from the top (F); 0: two separate towers",
    )
    query: PerLayer = Field(4, description="query prompts per layer; 0: the layer passes no message")
    query_context: PerLayer = Field(
        4, description="query-context prompts per layer; none where there are no query prompts"
    )
    fusion_context: PerLayer = Field(4, description="fusion-context prompts per layer")
    map_width: int | tuple[int, ...] | None = Field(
        None,
        description="hidden width of the maps; absent: half the wider tower; "
        "0: no map, rows pass as they are (equal widths only)",
    )

    @model_validator(mode="after")
    def _lengths_fit(self) -> PromptFusionConfig:
        for name in ("query", "query_context", "fusion_context", "map_width"):
            value = getattr(self, name)
            if isinstance(value, tuple) and len(value) != self.fused_layers:
                found = f"{name} lists {len(value)} lengths for {self.fused_layers} fused layers"
                raise ValueError(f"{found}: give one number, or one per layer")
            lengths = value if isinstance(value, tuple) else () if value is None else (value,)
            if any(not 0 <= length <= _LONGEST for length in lengths):
                raise ValueError(f"{name} is {value}: lengths are 0 to {_LONGEST}")
        return self

    def at(self, name: str, layer: int) -> int:
        """Returns the field `name` in fused layer `layer`; 0 is the lowest."""
        value = getattr(self, name)
        return value[layer] if isinstance(value, tuple) else value


class FusionTokens(NamedTuple):
    """Tokens of both towers before the first fused layer; a token store holds these."""

    image_BNC: Tensor
    text_BLC: Tensor
    text_mask_BL: Tensor | None


class PromptAttention(NamedTuple):
    """Attention of the query prompts of one fused layer, averaged over heads.

    What a row lacks to 1 is its attention to other prompts.
    """

    patches_BQN: Tensor
    """The class token first, then the patches."""
    words_BQL: Tensor


class FusedLayer(nn.Module):
    """The trained parts of one fused layer: the prompts of both towers and the two maps."""

    def __init__(self, config: PromptFusionConfig, layer: int, image_width: int, text_width: int) -> None:
        super().__init__()
        query = config.at("query", layer)
        lengths = (
            query,
            config.at("query_context", layer) if query else 0,
            config.at("fusion_context", layer),
        )
        self.image = Prompts(image_width, *lengths)
        self.text = Prompts(text_width, *lengths)
        self.image_to_text: nn.Module | None = None
        self.text_to_image: nn.Module | None = None
        if query:
            hidden = (
                max(image_width, text_width) // 2
                if config.map_width is None
                else config.at("map_width", layer)
            )
            self.image_to_text = PromptMap(image_width, hidden, text_width) if hidden else nn.Identity()
            self.text_to_image = PromptMap(text_width, hidden, image_width) if hidden else nn.Identity()

    def forward(
        self, image_layer: TowerLayer, text_layer: TowerLayer, tokens: FusionTokens, rows: int | None
    ) -> FusionTokens:
        """Returns the tokens after the layer: the first `rows` of each tower, or all for None."""
        mask_BL = tokens.text_mask_BL
        image, text = image_layer.project(tokens.image_BNC), text_layer.project(tokens.text_BLC)
        for_text_BQC = for_image_BQC = None
        if self.image_to_text is not None and self.text_to_image is not None:
            for_text_BQC = self.image_to_text(query_rows(image_layer, image, self.image, None))
            for_image_BQC = self.text_to_image(query_rows(text_layer, text, self.text, mask_BL))
        return FusionTokens(
            fused_rows(image_layer, tokens.image_BNC, image, self.image, for_image_BQC, None, rows),
            fused_rows(text_layer, tokens.text_BLC, text, self.text, for_text_BQC, mask_BL, rows),
            mask_BL,
        )

    @torch.no_grad()
    def gathered(
        self, image_layer: TowerLayer, text_layer: TowerLayer, tokens: FusionTokens
    ) -> PromptAttention:
        """Returns the attention of the query prompts, of which the layer must have some."""
        patches_BQN = _query_attention(image_layer, image_layer.project(tokens.image_BNC), self.image, None)
        words_BQL = _query_attention(
            text_layer, text_layer.project(tokens.text_BLC), self.text, tokens.text_mask_BL
        )
        return PromptAttention(patches_BQN, words_BQL)


def _query_attention(
    layer: TowerLayer, tokens: Projections, prompts: Prompts, mask_BN: Tensor | None
) -> Tensor:
    queries, keys, values, mask_BM = query_attention(layer, tokens, prompts, mask_BN)
    bias = None if mask_BM is None else hide(mask_BM[:, None, None, :], keys.dtype)
    _, weights_BHQM = attend(queries, keys, values, bias, want_weights=True)
    assert weights_BHQM is not None  # they were asked for
    return weights_BHQM.mean(1)[:, :, : tokens.keys_BHND.shape[2]]


class PromptFusion(nn.Module):
    """Two towers, the fused layers and two heads.

    The towers decide which of their own parameters are trained; in PMF they are frozen.
    """

    def __init__(self, config: PromptFusionConfig, image_tower: ImageTower, text_tower: TextTower) -> None:
        """Raises ModelError for a tower that cannot be fused.

        Raises ConfigError for more fused layers than a tower has, or for widths that need a map.
        """
        super().__init__()
        _check_towers(config, image_tower, text_tower)
        self.config = config
        self.image_tower, self.text_tower = image_tower, text_tower
        self.fused = nn.ModuleList(
            FusedLayer(config, layer, image_tower.width, text_tower.width)
            for layer in range(config.fused_layers)
        )
        self.image_head = nn.Linear(image_tower.width, config.classes)
        self.text_head = nn.Linear(text_tower.width, config.classes)

    def lower(
        self,
        image: Tensor,
        input_ids: Tensor,
        token_type_ids: Tensor | None = None,
        attention_mask: Tensor | None = None,
    ) -> FusionTokens:
        """Returns the tokens before the first fused layer.

        With frozen towers they carry no gradient and may be stored. The arguments are those of `forward`.
        """
        image_BNC, image_mask = self.image_tower.embed(image)
        text_BLC, text_mask_BL = self.text_tower.embed(input_ids, attention_mask, token_type_ids)
        for layer in self.image_tower.layers[: self.image_tower.depth - self.config.fused_layers]:
            image_BNC = layer(image_BNC, image_mask)
        for layer in self.text_tower.layers[: self.text_tower.depth - self.config.fused_layers]:
            text_BLC = layer(text_BLC, text_mask_BL)
        return FusionTokens(image_BNC, text_BLC, text_mask_BL)

    def fused_pairs(self) -> list[tuple[FusedLayer, TowerLayer, TowerLayer]]:
        """Returns for each fused layer its prompts, the image tower's layer and the text tower's layer.

        The last layers of the towers are paired from the top.
        """
        image_first = self.image_tower.depth - self.config.fused_layers
        text_first = self.text_tower.depth - self.config.fused_layers
        image_layers, text_layers = self.image_tower.layers[image_first:], self.text_tower.layers[text_first:]
        fused = cast("Iterable[FusedLayer]", self.fused)
        return list(zip(fused, image_layers, text_layers, strict=True))

    def fuse_heads(self, tokens: FusionTokens) -> tuple[Tensor, Tensor]:
        """Returns the logits (B, Y) of the image head and of the text head, from the result of `lower`."""
        pairs = self.fused_pairs()
        for index, (fused, image_layer, text_layer) in enumerate(pairs):
            tokens = fused(image_layer, text_layer, tokens, rows=1 if index == len(pairs) - 1 else None)
        class_BC = self.image_tower.finish(tokens.image_BNC[:, :1]).class_BC
        first_BC = self.text_tower.finish(tokens.text_BLC[:, :1], None).tokens_BLC[:, 0]
        return self.image_head(class_BC), self.text_head(first_BC)

    def fuse(
        self, tokens: FusionTokens, has_image_B: Tensor | None = None, has_text_B: Tensor | None = None
    ) -> Tensor:
        """Returns the logits (B, Y), the mean of the two heads, from the result of `lower`.

        A row without a picture (`has_image_B` is False) is labelled by the text head alone, a row without a
        text by the image head. The missing side still sends its messages, from a grey picture or an empty
        text; they are the same for all such rows.
        """
        image_BY, text_BY = self.fuse_heads(tokens)
        if has_image_B is None or has_text_B is None:
            return (image_BY + text_BY) / 2
        image_B1, text_B1 = has_image_B[:, None].to(image_BY.dtype), has_text_B[:, None].to(image_BY.dtype)
        return (image_B1 * image_BY + text_B1 * text_BY) / (image_B1 + text_B1)

    def forward(
        self,
        image: Tensor,
        input_ids: Tensor,
        token_type_ids: Tensor | None = None,
        attention_mask: Tensor | None = None,
    ) -> Tensor:
        """Returns the logits (B, Y).

        Args:
            image: pixels (B, 3, H, W), prepared with the image tower's preprocessing values.
            input_ids: (B, L) token ids, the class token first.
            token_type_ids: (B, L) segments; None for one segment.
            attention_mask: (B, L), True or 1 at real tokens; None when all are real.
        """
        return self.fuse(self.lower(image, input_ids, token_type_ids, attention_mask))

    @torch.no_grad()
    def explain(self, tokens: FusionTokens) -> list[PromptAttention | None]:
        """Returns the attention of the query prompts to patches and words, per fused layer.

        The entry is None for a layer without query prompts.
        """
        found: list[PromptAttention | None] = []
        for fused, image_layer, text_layer in self.fused_pairs():
            found.append(
                None if fused.image_to_text is None else fused.gathered(image_layer, text_layer, tokens)
            )
            tokens = fused(image_layer, text_layer, tokens, rows=None)
        return found


def label_loss(logits_BY: Tensor, labels: Tensor, multi_label: bool) -> Tensor:
    """Cross-entropy over classes, or binary cross-entropy for several labels per row.

    With one label per row, `labels` (B,) are class numbers and the mean is over rows (the paper's choice for
    Food-101 and SNLI-VE). With `multi_label`, `labels` (B, Y) are 0 or 1 and the mean is over rows and
    classes (MM-IMDB).
    """
    if multi_label:
        return nn.functional.binary_cross_entropy_with_logits(logits_BY, labels.to(logits_BY.dtype))
    return nn.functional.cross_entropy(logits_BY, labels)


def _check_towers(config: PromptFusionConfig, image_tower: ImageTower, text_tower: TextTower) -> None:
    for name, tower in (("image", image_tower), ("text", text_tower)):
        if not (tower.has_class_token and tower.appendable):
            raise ModelError(
                f"the {name} tower, a {type(tower).__name__}, cannot be fused by prompts: it needs a class "
                "token and layers whose tokens "
                "all see what joins them; use a ViT or CLIP's vision tower for pictures and a BERT for texts"
            )
        if config.fused_layers > tower.depth:
            raise ConfigError(
                f"fused_layers is {config.fused_layers} and the {name} tower has {tower.depth} layers: fuse "
                "at most those"
            )
    layers = range(config.fused_layers)
    unmapped = config.map_width is not None and any(
        config.at("query", layer) and not config.at("map_width", layer) for layer in layers
    )
    if unmapped and image_tower.width != text_tower.width:
        raise ConfigError(
            "map_width is 0, so that rows pass between the towers as they are, and the towers are "
            f"{image_tower.width} and "
            f"{text_tower.width} wide: give the maps a width"
        )
