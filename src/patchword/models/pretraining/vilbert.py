"""ViLBERT: two streams, one of words and one of regions, that ask each other.

Lu et al. 2019 (arXiv 1908.02265).

    region i -> LN(W v_i + U (x1, y1, x2, y2, area));   region 0 is the whole picture, its feature the mean
    text:     a BERT;   pictures: blocks of a BERT;   co-attention stands before each of the last text blocks
    words:    - log p(w at hidden places | text, regions)                           15 %, 80 / 10 / 10
    regions:  KL(p_tower || q) of the classes of hidden regions                     15 %, zeroed in 9 of 10
    pairs:    sigmoid(w . (h_picture * h_text)), a pair or not
    answers:  W2 LN(gelu(W1 (h_picture * h_text)))           tuned, section 3.2; both pooled, as for pairs

Words and regions are learnt from true pairs alone.

Shape legend (in addition to `types.py`): N regions with the whole picture first, F width of a region's
feature, W width of the picture stream, C of the text stream, K classes of the tower, R questions about B
pictures, A answers.
"""

from __future__ import annotations

from typing import Any, Literal, NamedTuple

import torch
import torch.nn.functional as F
from pydantic import BaseModel, Field
from torch import Tensor, nn

from patchword.errors import ConfigError, ModelError
from patchword.layers.co_attention import EPS, CoAttention
from patchword.layers.regions import cell_boxes, five, whole_and_cells
from patchword.types import VisualFeatures


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


class VilbertPointingConfig(BaseModel, extra="forbid", frozen=True):
    """Tuning of pre-trained streams on phrases with the boxes that they name."""

    kind: Literal["vilbert_pointing"] = "vilbert_pointing"


class Streams(NamedTuple):
    """Both streams after the last block."""

    text_BLC: Tensor
    picture_BNW: Tensor


class Vilbert(nn.Module):
    """The two streams and the heads of the pre-training.

    `text` is a BERT tower and `blocks` the blocks of another one, of width W; see `tasks/pretrain`.
    """

    def __init__(
        self,
        config: VilbertConfig,
        text: Any,
        picture: Any,
        feature_width: int,
        classes: int,
        heads: bool = True,
    ) -> None:
        """Without `heads` it has none of those that hidden words, hidden regions and pairs are told by.

        Raises ConfigError where there are fewer blocks than co-attentions.
        """
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
        self.word_head: Any = None
        self.class_head: Any = None
        self.pair_head: Any = None
        if heads:
            words = nn.Linear(width, text.vocabulary_size)
            self.word_head = nn.Sequential(nn.Linear(width, width), nn.GELU(), nn.LayerNorm(width), words)
            self.class_head = nn.Linear(config.width, classes) if classes else None
        self.text_pool, self.picture_pool = (
            nn.Linear(width, config.inner),
            nn.Linear(config.width, config.inner),
        )
        if heads:
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

    def pooled(self, streams: Streams) -> Tensor:
        """What is known of text and picture together, (B, inner): the product of both pooled vectors."""
        text, picture = (
            F.relu(self.text_pool(streams.text_BLC[:, 0])),
            F.relu(self.picture_pool(streams.picture_BNW[:, 0])),
        )
        return text * picture

    def pair_logits(self, streams: Streams) -> Tensor:
        """Logit of each text belonging to its picture, (B,)."""
        return self.pair_head(self.pooled(streams)).squeeze(-1)


class SeenRegions(NamedTuple):
    """Regions of pictures, before any question."""

    features_BNF: Tensor
    places_BN5: Tensor

    def of(self, picture_of_row_R: Tensor) -> SeenRegions:
        """Repeats the pictures, one row for each question."""
        return SeenRegions(*(part.index_select(0, picture_of_row_R) for part in self))


class AskedStreams(NamedTuple):
    """Pairs of picture and question that both streams have read."""

    summary_RC: Tensor
    looked_RLN: None = None
    """Two streams show no map."""
    concepts_RN: None = None


class StreamEncoder(nn.Module):
    """Reads questions about pictures by two streams."""

    def __init__(self, streams: Vilbert) -> None:
        super().__init__()
        self.streams = streams

    def forward(
        self,
        features: VisualFeatures,
        question_RL: Tensor,
        lengths_R: Tensor,
        picture_of_row_R: Tensor | None = None,
        trace: bool = False,
    ) -> AskedStreams:
        """Joins `look` and `read`."""
        seen = self.look(features)
        return self.read(
            seen if picture_of_row_R is None else seen.of(picture_of_row_R), question_RL, lengths_R, trace
        )

    def look(self, features: VisualFeatures) -> SeenRegions:
        """The regions of pictures: the whole and its cells.

        Raises ModelError for features of another width, ConfigError for a tower without a grid.
        """
        found, wanted = features.grid_BNC.shape[-1], self.streams.feature.in_features
        if found != wanted:
            raise ModelError(
                f"patch features are {found} wide and the model was built for {wanted}: use the tower that "
                "it was trained with"
            )
        if features.hw is None or features.mask_BN is not None:
            raise ConfigError("the tower's features form no whole grid: two streams need its cells")
        seen_BNF = whole_and_cells(features.grid_BNC, None)
        places_N5 = five(cell_boxes(features.hw)).to(seen_BNF)
        return SeenRegions(seen_BNF, places_N5.expand(len(seen_BNF), -1, -1))

    def read(
        self, seen: SeenRegions, question_RL: Tensor, lengths_R: Tensor, trace: bool = False
    ) -> AskedStreams:
        """Reads R questions, each with its picture; there is no trace."""
        mask_RL = torch.arange(question_RL.shape[1], device=question_RL.device) < lengths_R[:, None]
        found = self.streams(question_RL, mask_RL, seen.features_BNF, seen.places_BN5)
        return AskedStreams(self.streams.pooled(found))

    def contrast_loss(self, seen: SeenRegions) -> Tensor:
        """Raises ModelError: two streams have no patch contrast."""
        raise ModelError("two streams have no patch contrast: set patch_contrast of each stage to 0")


class StreamAnswerer(nn.Module):
    """Chooses one of `answers` fixed answers. It offers what `AnswerClassifier` of
    `models/fusion/question_answering.py` offers, so that training, answering and evaluation are those of any
    model that answers.
    """

    def __init__(self, streams: Vilbert, answers: int) -> None:
        super().__init__()
        self.encoder = StreamEncoder(streams)
        inner = streams.config.inner
        self.head = nn.Sequential(
            nn.Linear(inner, 2 * inner), nn.GELU(), nn.LayerNorm(2 * inner), nn.Linear(2 * inner, answers)
        )

    def forward(
        self,
        features: VisualFeatures,
        question_RL: Tensor,
        lengths_R: Tensor,
        picture_of_row_R: Tensor | None = None,
    ) -> Tensor:
        """Returns the logits (R, A)."""
        return self.choose(self.encoder(features, question_RL, lengths_R, picture_of_row_R))

    def choose(self, asked: AskedStreams) -> Tensor:
        """Returns the logits (R, A) from pairs that were read."""
        return self.head(asked.summary_RC)


def word_loss(logits_PV: Tensor, targets_P: Tensor) -> Tensor:
    """Sum of -log p over hidden words."""
    return F.cross_entropy(logits_PV.float(), targets_P, reduction="sum")


def region_loss(logits_PK: Tensor, target_PK: Tensor) -> Tensor:
    """Sum of KL(p || q) over hidden regions; 0 where q = p."""
    return F.kl_div(logits_PK.float().log_softmax(-1), target_PK.float(), reduction="sum")
