"""Answers to questions about a picture: the encoder of the fused captioner, read by the question.

    picture    F = LN(dropout(CELU(W grid))) + grid positions; self-attention layers; then, with a codebook, region alignment: each patch
               gets a word and attends to the words                                                        (Gao 2025, FSGR)
    question   words with sine positions; layers of self-attention, cross-attention to the patches, feed-forward
    answer     one of a fixed list: softmax(W q) of the first token, which every question starts with;
               or made word by word by a caption transformer that attends to patches and question side by side

The fusion design, section on visual question answering, keeps the encoder and replaces the caption by an answer, chosen or generated; it
leaves open how the question enters. Here it enters by cross-attention, so that the words say which patches they looked at.
Hard labels are trained by cross-entropy; where ten people answered, each answer has a score and is trained by binary cross-entropy
(Teney et al. 2018, arXiv 1708.02711, section 3.7).

Shape legend (with the one of `types.py`): A answers, L question tokens, R questions about B pictures (without an owner of each: R = B).
"""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from pydantic import BaseModel, Field
from torch import Tensor, nn
from torch.nn import functional as F

from patchword.errors import ConfigError, ModelError
from patchword.layers.codebook import Codebook
from patchword.layers.linear import Linear
from patchword.layers.positions import grid_positions, sine_positions
from patchword.layers.region_alignment import PatchContrast, RegionAlignment, RegionAlignmentConfig
from patchword.layers.transformer import (
    CrossAttention,
    EncoderLayer,
    FeedForward,
    SelfAttention,
    add_dropped,
    check_heads,
    check_length,
    initialise,
    padding_bias,
)
from patchword.types import Captioner, Decoded, Trace, VisualFeatures

_CELU_ALPHA = 1.3


class QuestionConfig(BaseModel, extra="forbid", frozen=True):
    """Sizes of the encoder of picture and question."""

    width: int = Field(256, gt=0, description="width of the tokens")
    heads: int = Field(4, gt=0, description="attention heads; they divide the width")
    hidden: int = Field(512, gt=0, description="hidden width of the feed-forward parts")
    picture_layers: int = Field(1, ge=0, description="self-attention layers over the patches")
    question_layers: int = Field(
        2, gt=0, description="layers of the question, each with a look at the patches"
    )
    dropout: float = Field(
        0.1,
        ge=0,
        lt=1,
        description="dropout after each sub-layer, in the feed-forward parts and on the inputs",
    )
    max_positions: int = Field(32, gt=0, description="longest question in tokens, start token included")
    region_alignment: RegionAlignmentConfig | None = Field(
        None, description="region alignment with a codebook; absent: none"
    )


class PictureEncoding(NamedTuple):
    """A picture before it is asked about."""

    patches_BNC: Tensor
    mask_BN: Tensor | None
    embedded_BNC: Tensor
    """F: the patches before the layers, which the patch contrast compares."""
    concepts_BN: Tensor | None
    """Codebook row of each patch; None without region alignment."""

    def of(self, picture_of_row_R: Tensor) -> PictureEncoding:
        """The pictures again, once for each question."""
        return PictureEncoding(
            *(None if part is None else part.index_select(0, picture_of_row_R) for part in self)
        )


class QuestionEncoding(NamedTuple):
    """Picture and question after they have met."""

    patches_RNC: Tensor
    question_RLC: Tensor
    patch_mask_RN: Tensor | None
    question_mask_RL: Tensor
    looked_RLN: Tensor | None
    """Weights over the patches of each question token, last layer, heads averaged; only where a trace was wanted."""
    concepts_RN: Tensor | None
    """Codebook row of each patch; None without region alignment."""

    @property
    def summary_RC(self) -> Tensor:
        """The first token of each question."""
        return self.question_RLC[:, 0]


class QuestionLayer(nn.Module):
    """Self-attention of the question, a look at the patches, feed-forward; residuals are normalised after the sum."""

    def __init__(self, config: QuestionConfig) -> None:
        super().__init__()
        self.attention = SelfAttention(config.width, config.heads)
        self.attention_norm = nn.LayerNorm(config.width)
        self.cross = CrossAttention(config.width, config.heads)
        self.cross_norm = nn.LayerNorm(config.width)
        self.feed_forward = FeedForward(config.width, config.hidden, config.dropout)
        self.dropout = config.dropout

    def forward(
        self,
        y_RLC: Tensor,
        question_bias: Tensor,
        patches_RNC: Tensor,
        patch_bias: Tensor | None,
        trace: bool,
    ) -> tuple[Tensor, Tensor | None]:
        """The layer's output and, where wanted, its attention (R, H, L, N) over the patches."""
        y_RLC = self.attention_norm(
            add_dropped(y_RLC, self.attention(y_RLC, question_bias), self.dropout, self.training)
        )
        looked_RLC, weights_RHLN = self.cross(y_RLC, *self.cross.project(patches_RNC), patch_bias, trace)
        y_RLC = self.cross_norm(add_dropped(y_RLC, looked_RLC, self.dropout, self.training))
        return self.feed_forward(y_RLC), weights_RHLN


class QuestionEncoder(nn.Module):
    """Patch features of width `feature_width` and a question over `vocabulary_size` words, fused."""

    def __init__(
        self,
        config: QuestionConfig,
        feature_width: int,
        vocabulary_size: int,
        codebook: Codebook | None = None,
    ) -> None:
        """Raises ConfigError for sizes that do not fit one another or a loss that questions do not have, ModelError for a codebook without
        region alignment or the reverse."""
        super().__init__()
        check_heads(config.width, config.heads)
        if config.region_alignment is not None and config.region_alignment.text_regulariser:
            raise ConfigError(
                "region_alignment.text_regulariser compares pictures with their captions, and questions have none: set it to false"
            )
        if (config.region_alignment is None) != (codebook is None):
            raise ModelError(
                "region alignment and a codebook go together: give both, or leave out [answerer.region_alignment] and the codebook"
            )
        self.config = config
        self.embed = Linear(feature_width, config.width)
        self.embed_norm = nn.LayerNorm(config.width)
        self.picture_layers = nn.ModuleList(
            EncoderLayer(config.width, config.heads, config.hidden, config.dropout)
            for _ in range(config.picture_layers)
        )
        self.region_alignment, self.contrast = None, None
        if config.region_alignment is not None and codebook is not None:
            self.region_alignment = RegionAlignment(
                config.region_alignment, codebook, config.width, config.heads, config.hidden, config.dropout
            )
            if config.region_alignment.contrast_width:
                self.contrast = PatchContrast(config.width, config.region_alignment.contrast_width)
        self.words = nn.Embedding(vocabulary_size, config.width)
        self.question_layers = nn.ModuleList(QuestionLayer(config) for _ in range(config.question_layers))
        self.register_buffer(
            "positions_LC", sine_positions(torch.arange(config.max_positions), config.width), persistent=False
        )
        initialise(self)
        nn.init.normal_(self.words.weight, std=config.width**-0.5)

    def forward(
        self,
        features: VisualFeatures,
        question_RL: Tensor,
        lengths_R: Tensor,
        picture_of_row_R: Tensor | None = None,
        trace: bool = False,
    ) -> QuestionEncoding:
        """Fuses each question with its picture; see `look` and `read`, which it joins."""
        seen = self.look(features)
        return self.read(
            seen if picture_of_row_R is None else seen.of(picture_of_row_R), question_RL, lengths_R, trace
        )

    def look(self, features: VisualFeatures) -> PictureEncoding:
        """The picture's part, which no question changes. Raises ModelError for features of another width."""
        if features.grid_BNC.shape[-1] != self.embed.in_features:
            raise ModelError(
                f"patch features are {features.grid_BNC.shape[-1]} wide and the model was built for {self.embed.in_features}: "
                "use the tower that it was trained with"
            )
        embedded_BNC = F.celu(self.embed(features.grid_BNC), _CELU_ALPHA)
        embedded_BNC = self.embed_norm(F.dropout(embedded_BNC, self.config.dropout, self.training))
        x_BNC = embedded_BNC
        if features.hw is not None:
            x_BNC = x_BNC + grid_positions(*features.hw, self.config.width, x_BNC.device).to(x_BNC.dtype)
        bias = padding_bias(features.mask_BN, x_BNC)
        for layer in self.picture_layers:
            x_BNC = layer(x_BNC, bias)
        if self.region_alignment is None:
            return PictureEncoding(x_BNC, features.mask_BN, embedded_BNC, None)
        assigned = self.region_alignment.assign(features)
        x_BNC = self.region_alignment(x_BNC, assigned, features.hw, features.mask_BN)
        return PictureEncoding(x_BNC, features.mask_BN, embedded_BNC, assigned.concepts_BN)

    def read(
        self, seen: PictureEncoding, question_RL: Tensor, lengths_R: Tensor, trace: bool = False
    ) -> QuestionEncoding:
        """The question's part, R pictures beside R questions.

        Args:
            question_RL: token ids, each question starting with the same start token; padding is not looked at.
            lengths_R: tokens of each question, at least 1.

        Raises:
            ModelError: a question longer than the positions.
        """
        length = question_RL.shape[1]
        check_length(length, self.config.max_positions)
        mask_RL = torch.arange(length, device=question_RL.device) < lengths_R[:, None]
        y_RLC = self.words(question_RL) * self.config.width**0.5 + self.positions_LC[:length]
        y_RLC = F.dropout(y_RLC, self.config.dropout, self.training)
        question_bias, patch_bias = padding_bias(mask_RL, y_RLC), padding_bias(seen.mask_BN, y_RLC)
        weights_RHLN = None
        for layer in self.question_layers:
            y_RLC, weights_RHLN = layer(y_RLC, question_bias, seen.patches_BNC, patch_bias, trace)
        looked_RLN = None if weights_RHLN is None else weights_RHLN.mean(1)
        return QuestionEncoding(seen.patches_BNC, y_RLC, seen.mask_BN, mask_RL, looked_RLN, seen.concepts_BN)

    def contrast_loss(self, seen: PictureEncoding) -> Tensor:
        """Patch contrast over F, with the assigned words as labels (FSGR). Raises ModelError where the model has no contrast head."""
        if self.contrast is None:
            raise ModelError(
                "this model has no patch contrast; set region_alignment.contrast_width above 0, or give its loss no weight"
            )
        return self.contrast(seen.embedded_BNC, seen.concepts_BN, seen.mask_BN)


class AnswerClassifier(nn.Module):
    """One of `answers` fixed answers."""

    def __init__(
        self,
        config: QuestionConfig,
        feature_width: int,
        vocabulary_size: int,
        answers: int,
        codebook: Codebook | None = None,
    ) -> None:
        """Raises as `QuestionEncoder`."""
        super().__init__()
        self.encoder = QuestionEncoder(config, feature_width, vocabulary_size, codebook)
        self.head = Linear(config.width, answers)

    def forward(
        self,
        features: VisualFeatures,
        question_RL: Tensor,
        lengths_R: Tensor,
        picture_of_row_R: Tensor | None = None,
    ) -> Tensor:
        """Logits (R, A)."""
        return self.choose(self.encoder(features, question_RL, lengths_R, picture_of_row_R))

    def choose(self, asked: QuestionEncoding) -> Tensor:
        """Logits (R, A) of pictures that were asked about."""
        return self.head(asked.summary_RC)


class AnswerGenerator(nn.Module):
    """Answers made word by word by any captioner, which reads patches and question as one grid of features.

    It is used like a captioner, `encode` taking the question too: greedy and beam search of `decode.py` run on what it returns.
    """

    def __init__(self, encoder: QuestionEncoder, captioner: Captioner) -> None:
        """`captioner` is built for features of the encoder's width, without an encoder or alignment of its own."""
        super().__init__()
        self.encoder = encoder
        self.captioner = captioner

    @property
    def vocabulary_size(self) -> int:
        return self.captioner.vocabulary_size

    def encode(
        self,
        features: VisualFeatures,
        question_RL: Tensor,
        lengths_R: Tensor,
        picture_of_row_R: Tensor | None = None,
    ) -> NamedTuple:
        """The captioner's memory of [patches; question]."""
        return self.remember(self.encoder(features, question_RL, lengths_R, picture_of_row_R))

    def remember(self, asked: QuestionEncoding) -> NamedTuple:
        """The captioner's memory of pictures that were asked about."""
        patch_mask_RN = asked.patch_mask_RN
        if patch_mask_RN is None:
            patch_mask_RN = torch.ones(
                asked.patches_RNC.shape[:2], dtype=torch.bool, device=asked.patches_RNC.device
            )
        tokens_RNC = torch.cat([asked.patches_RNC, asked.question_RLC], 1)
        return self.captioner.encode(
            VisualFeatures(grid_BNC=tokens_RNC, mask_BN=torch.cat([patch_mask_RN, asked.question_mask_RL], 1))
        )

    def decode(
        self, tokens_BT: Tensor, lengths_B: Tensor, memory: NamedTuple, trace: bool = False
    ) -> Decoded:
        """As `Captioner.decode`."""
        return self.captioner.decode(tokens_BT, lengths_B, memory, trace)

    def start(self, memory: NamedTuple, beams: int) -> NamedTuple:
        """As `Captioner.start`."""
        return self.captioner.start(memory, beams)

    def step(
        self, tokens_R: Tensor, memory: NamedTuple, state: Any, trace: bool = False
    ) -> tuple[Tensor, NamedTuple, Trace | None]:
        """As `Captioner.step`."""
        return self.captioner.step(tokens_R, memory, state, trace)


def answer_loss(logits_RA: Tensor, answers: Tensor) -> Tensor:
    """Mean over questions. `answers` (R,) are answer numbers: cross-entropy. `answers` (R, A) are scores in [0, 1], how far the annotators
    agree on each: binary cross-entropy, summed over answers as Teney et al. do."""
    if answers.dim() == 1:
        return F.cross_entropy(logits_RA, answers)
    return (
        F.binary_cross_entropy_with_logits(logits_RA, answers.to(logits_RA.dtype), reduction="none")
        .sum(1)
        .mean()
    )
