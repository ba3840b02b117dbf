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

Shape legend (with the one of `types.py`): A answers, L question tokens.
"""

from __future__ import annotations

from typing import Any, Literal, NamedTuple

import torch
from pydantic import BaseModel, Field
from torch import Tensor, nn
from torch.nn import functional as F

from patchword.errors import ModelError
from patchword.layers.alignment import AlignmentConfig, RegionAlignment
from patchword.layers.codebook import Codebook
from patchword.layers.positions import grid_positions, sine_positions
from patchword.layers.transformer import (
    CrossAttention,
    EncoderLayer,
    FeedForward,
    SelfAttention,
    check_heads,
    check_length,
    initialise,
    padding_bias,
)
from patchword.types import Captioner, Decoded, Trace, VisualFeatures

_CELU_ALPHA = 1.3


class QuestionConfig(BaseModel, extra="forbid", frozen=True):
    """Sizes of the encoder of picture and question."""

    kind: Literal["question"] = "question"
    width: int = Field(256, gt=0, description="width of the tokens")
    heads: int = Field(4, gt=0, description="attention heads; they divide the width")
    hidden: int = Field(512, gt=0, description="hidden width of the feed-forward parts")
    picture_layers: int = Field(1, ge=0, description="self-attention layers over the patches")
    question_layers: int = Field(2, gt=0, description="layers of the question, each with a look at the patches")
    dropout: float = Field(0.1, ge=0, lt=1, description="dropout after each sub-layer, in the feed-forward parts and on the inputs")
    max_positions: int = Field(32, gt=0, description="longest question in tokens, start token included")
    alignment: AlignmentConfig | None = Field(None, description="region alignment with a codebook; absent: none")


class AskedPicture(NamedTuple):
    """Picture and question after they have met."""

    patches_BNC: Tensor
    question_BLC: Tensor
    patch_mask_BN: Tensor | None
    question_mask_BL: Tensor
    looked_BLN: Tensor | None
    """Weights over the patches of each question token, last layer, heads averaged; only where a trace was wanted."""
    concepts_BN: Tensor | None
    """Codebook row of each patch; None without region alignment."""

    @property
    def summary_BC(self) -> Tensor:
        """The first token of each question."""
        return self.question_BLC[:, 0]


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
        self, y_BLC: Tensor, question_bias: Tensor, patches_BNC: Tensor, patch_bias: Tensor | None, trace: bool
    ) -> tuple[Tensor, Tensor | None]:
        """The layer's output and, where wanted, its attention (B, H, L, N) over the patches."""
        y_BLC = self.attention_norm(y_BLC + F.dropout(self.attention(y_BLC, question_bias), self.dropout, self.training))
        looked_BLC, weights_BHLN = self.cross(y_BLC, *self.cross.project(patches_BNC), patch_bias, trace)
        y_BLC = self.cross_norm(y_BLC + F.dropout(looked_BLC, self.dropout, self.training))
        return self.feed_forward(y_BLC), weights_BHLN


class QuestionEncoder(nn.Module):
    """Patch features of width `feature_width` and a question over `vocabulary_size` words, fused."""

    def __init__(self, config: QuestionConfig, feature_width: int, vocabulary_size: int, codebook: Codebook | None = None) -> None:
        """Raises ConfigError for sizes that do not fit one another, ModelError for a codebook without region alignment or the reverse."""
        super().__init__()
        check_heads(config.width, config.heads)
        if (config.alignment is None) != (codebook is None):
            raise ModelError("region alignment and a codebook go together: give both, or leave out [model.alignment] and the codebook")
        self.config = config
        self.embed = nn.Linear(feature_width, config.width)
        self.embed_norm = nn.LayerNorm(config.width)
        self.picture_layers = nn.ModuleList(
            EncoderLayer(config.width, config.heads, config.hidden, config.dropout) for _ in range(config.picture_layers)
        )
        self.alignment = None
        if config.alignment is not None and codebook is not None:
            self.alignment = RegionAlignment(config.alignment, codebook, config.width, config.heads, config.hidden, config.dropout)
        self.words = nn.Embedding(vocabulary_size, config.width)
        self.question_layers = nn.ModuleList(QuestionLayer(config) for _ in range(config.question_layers))
        self.register_buffer("positions_LC", sine_positions(torch.arange(config.max_positions), config.width), persistent=False)
        initialise(self)
        nn.init.normal_(self.words.weight, std=config.width**-0.5)

    def forward(self, features: VisualFeatures, question_BL: Tensor, lengths_B: Tensor, trace: bool = False) -> AskedPicture:
        """Fuses each picture with its question.

        Args:
            question_BL: token ids, each question starting with the same start token; padding is not looked at.
            lengths_B: tokens of each question, at least 1.

        Raises:
            ModelError: features of another width, or a question longer than the positions.
        """
        length = question_BL.shape[1]
        check_length(length, self.config.max_positions)
        patches_BNC, concepts_BN = self._picture(features)
        mask_BL = torch.arange(length, device=question_BL.device) < lengths_B[:, None]
        y_BLC = self.words(question_BL) * self.config.width**0.5 + self.positions_LC[:length]
        y_BLC = F.dropout(y_BLC, self.config.dropout, self.training)
        question_bias, patch_bias = padding_bias(mask_BL, y_BLC), padding_bias(features.mask_BN, y_BLC)
        weights_BHLN = None
        for layer in self.question_layers:
            y_BLC, weights_BHLN = layer(y_BLC, question_bias, patches_BNC, patch_bias, trace)
        looked_BLN = None if weights_BHLN is None else weights_BHLN.mean(1)
        return AskedPicture(patches_BNC, y_BLC, features.mask_BN, mask_BL, looked_BLN, concepts_BN)

    def _picture(self, features: VisualFeatures) -> tuple[Tensor, Tensor | None]:
        if features.grid_BNC.shape[-1] != self.embed.in_features:
            raise ModelError(
                f"patch features are {features.grid_BNC.shape[-1]} wide and the model was built for {self.embed.in_features}: "
                "use the tower that it was trained with"
            )
        embedded_BNC = F.celu(self.embed(features.grid_BNC), _CELU_ALPHA)
        x_BNC = self.embed_norm(F.dropout(embedded_BNC, self.config.dropout, self.training))
        if features.hw is not None:
            x_BNC = x_BNC + grid_positions(*features.hw, self.config.width, x_BNC.device).to(x_BNC.dtype)
        bias = padding_bias(features.mask_BN, x_BNC)
        for layer in self.picture_layers:
            x_BNC = layer(x_BNC, bias)
        if self.alignment is None:
            return x_BNC, None
        assigned = self.alignment.assign(features)
        return self.alignment(x_BNC, assigned, features.hw, features.mask_BN), assigned.concepts_BN


class AnswerClassifier(nn.Module):
    """One of `answers` fixed answers."""

    def __init__(
        self, config: QuestionConfig, feature_width: int, vocabulary_size: int, answers: int, codebook: Codebook | None = None
    ) -> None:
        """Raises as `QuestionEncoder`."""
        super().__init__()
        self.encoder = QuestionEncoder(config, feature_width, vocabulary_size, codebook)
        self.head = nn.Linear(config.width, answers)

    def forward(self, features: VisualFeatures, question_BL: Tensor, lengths_B: Tensor) -> Tensor:
        """Logits (B, A)."""
        return self.head(self.encoder(features, question_BL, lengths_B).summary_BC)


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

    def encode(self, features: VisualFeatures, question_BL: Tensor, lengths_B: Tensor) -> NamedTuple:
        """The captioner's memory of [patches; question]."""
        asked = self.encoder(features, question_BL, lengths_B)
        patch_mask_BN = asked.patch_mask_BN
        if patch_mask_BN is None:
            patch_mask_BN = torch.ones(asked.patches_BNC.shape[:2], dtype=torch.bool, device=question_BL.device)
        tokens_BNC = torch.cat([asked.patches_BNC, asked.question_BLC], 1)
        return self.captioner.encode(VisualFeatures(grid_BNC=tokens_BNC, mask_BN=torch.cat([patch_mask_BN, asked.question_mask_BL], 1)))

    def decode(self, tokens_BT: Tensor, lengths_B: Tensor, memory: NamedTuple, trace: bool = False) -> Decoded:
        """As `Captioner.decode`."""
        return self.captioner.decode(tokens_BT, lengths_B, memory, trace)

    def start(self, memory: NamedTuple, beams: int) -> NamedTuple:
        """As `Captioner.start`."""
        return self.captioner.start(memory, beams)

    def step(self, tokens_R: Tensor, memory: NamedTuple, state: Any, trace: bool = False) -> tuple[Tensor, NamedTuple, Trace | None]:
        """As `Captioner.step`."""
        return self.captioner.step(tokens_R, memory, state, trace)


def answer_loss(logits_BA: Tensor, answers: Tensor) -> Tensor:
    """Mean over questions. `answers` (B,) are answer numbers: cross-entropy. `answers` (B, A) are scores in [0, 1], how far the annotators
    agree on each: binary cross-entropy, summed over answers as Teney et al. do."""
    if answers.dim() == 1:
        return F.cross_entropy(logits_BA, answers)
    return F.binary_cross_entropy_with_logits(logits_BA, answers.to(logits_BA.dtype), reduction="none").sum(1).mean()
