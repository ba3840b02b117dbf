"""ViLBERT: two streams, one of words and one of regions, that ask each other.

Lu et al. 2019 (arXiv 1908.02265).

    region i -> LN(W v_i + U (x1, y1, x2, y2, area));   region 0 is the whole picture, its feature the mean
    text:     a BERT;   pictures: blocks of a BERT;   co-attention stands before each of the last text blocks
    words:    - log p(w at hidden places | text, regions)                           15 %, 80 / 10 / 10
    regions:  KL(p_tower || q) of the classes of hidden regions                     15 %, zeroed in 9 of 10
    pairs:    sigmoid(w . (h_picture * h_text)), a pair or not

Words and regions are learnt from true pairs alone.

Shape legend (in addition to `types.py`): N regions with the whole picture first, F width of a region's
feature, W width of the picture stream, C of the text stream, K classes of the tower.
"""

from __future__ import annotations

from typing import Any, Literal, NamedTuple

import torch
import torch.nn.functional as F
from pydantic import BaseModel, Field
from torch import Tensor, nn

from patchword.errors import ConfigError
from patchword.layers.co_attention import EPS, CoAttention


class VilbertConfig(BaseModel, extra="forbid", frozen=True):
    """Sizes of the picture stream and of the co-attention, and what is hidden."""

    kind: Literal["vilbert"] = "vilbert"
    pairs: int = Field(
        6, gt=0, le=512, description="last text blocks that stand behind a co-attention, and picture blocks"
    )
    width: int = Field(1024, gt=0, le=65536, description="width W of the picture stream")
    heads: int = Field(8, gt=0, le=1024, description="heads of picture blocks and co-attention")
    hidden: int = Field(1024, gt=0, le=65536, description="inner width of the picture blocks' feed-forwards")
    inner: int = Field(1024, gt=0, le=65536, description="inner width of the co-attention")
    share: float = Field(
        0.15, gt=0, lt=1, description="share of the words, and of the regions, that is hidden"
    )
    negatives: float = Field(
        0.5, ge=0, lt=1, description="share of the pairs in a batch whose text is another one"
    )
    hard: float = Field(
        0.5,
        ge=0,
        le=1,
        description="share of these that are hard: the own text with one word replaced by one of its kind",
    )
    regions: Literal["cells", "crops"] = Field(
        "cells", description="cells of the tower's grid; crops: windows that the tower sees one by one"
    )


class Streams(NamedTuple):
    """Both streams after the last block."""

    text_BLC: Tensor
    picture_BNW: Tensor


class Vilbert(nn.Module):
    """The two streams and the heads of the pre-training.

    `text` is a BERT tower and `blocks` the blocks of another one, of width W; see `tasks/pretrain`.
    """

    def __init__(
        self, config: VilbertConfig, text: Any, picture: Any, feature_width: int, classes: int
    ) -> None:
        """Raises ConfigError where there are fewer blocks than co-attentions."""
        super().__init__()
        if config.pairs > len(text.layers) or config.pairs > len(picture.layers):
            raise ConfigError(
                f"model.pairs is {config.pairs}, and there are {len(text.layers)} text blocks and "
                f"{len(picture.layers)} picture blocks: make it smaller"
            )
        self.config, self.text, self.picture = config, text, picture
        width = text.width
        self.feature = nn.Linear(feature_width, config.width)
        self.place = nn.Linear(5, config.width)
        self.norm = nn.LayerNorm(config.width, eps=EPS)
        self.mark_C = nn.Parameter(torch.randn(width) * 0.02)
        self.joined = nn.ModuleList(
            CoAttention(width, config.width, config.inner, config.heads) for _ in range(config.pairs)
        )
        self.word_head = nn.Sequential(
            nn.Linear(width, width), nn.GELU(), nn.LayerNorm(width), nn.Linear(width, text.vocabulary_size)
        )
        self.class_head = nn.Linear(config.width, classes) if classes else None
        self.text_pool, self.picture_pool = (
            nn.Linear(width, config.inner),
            nn.Linear(config.width, config.inner),
        )
        self.pair_head = nn.Linear(config.inner, 1)

    def regions(self, features_BNF: Tensor, places_BN5: Tensor) -> Tensor:
        """The picture stream before its first block, (B, N, W)."""
        return self.norm(self.feature(features_BNF) + self.place(places_BN5))

    def forward(
        self,
        ids_BL: Tensor,
        mask_BL: Tensor,
        features_BNF: Tensor,
        places_BN5: Tensor,
        mask_BN: Tensor | None = None,
        hidden_BL: Tensor | None = None,
    ) -> Streams:
        """Reads pairs; `hidden_BL` marks words that are hidden, `mask_BN` is True at real regions."""
        if hidden_BL is None:
            hidden_BL = torch.zeros_like(mask_BL)
        text_BLC, mask_BL = self.text.embed_hidden(ids_BL, mask_BL, hidden=hidden_BL, mark_C=self.mark_C)
        picture_BNW = self.regions(features_BNF, places_BN5)
        text_layers, picture_layers = self.text.layers, self.picture.layers
        alone_text = len(text_layers) - self.config.pairs
        alone_picture = len(picture_layers) - self.config.pairs
        for layer in text_layers[:alone_text]:
            text_BLC = layer(text_BLC, mask_BL)
        for layer in picture_layers[:alone_picture]:
            picture_BNW = layer(picture_BNW, mask_BN)
        following = zip(self.joined, text_layers[alone_text:], picture_layers[alone_picture:], strict=True)
        for joint, text_layer, picture_layer in following:
            text_BLC, picture_BNW = joint(text_BLC, picture_BNW, mask_BL, mask_BN)
            text_BLC, picture_BNW = text_layer(text_BLC, mask_BL), picture_layer(picture_BNW, mask_BN)
        return Streams(text_BLC, picture_BNW)

    def pair_logits(self, streams: Streams) -> Tensor:
        """Logit of each text belonging to its picture, (B,)."""
        text, picture = (
            F.relu(self.text_pool(streams.text_BLC[:, 0])),
            F.relu(self.picture_pool(streams.picture_BNW[:, 0])),
        )
        return self.pair_head(text * picture).squeeze(-1)


def word_loss(logits_PV: Tensor, targets_P: Tensor) -> Tensor:
    """Sum of -log p over hidden words."""
    return F.cross_entropy(logits_PV.float(), targets_P, reduction="sum")


def region_loss(logits_PK: Tensor, target_PK: Tensor) -> Tensor:
    """Sum of KL(p || q) over hidden regions; 0 where q = p."""
    return F.kl_div(logits_PK.float().log_softmax(-1), target_PK.float(), reduction="sum")
