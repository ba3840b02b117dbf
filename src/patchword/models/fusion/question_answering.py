"""Question answering: the encoder of the fused captioner, with cross-attention from the question.

    picture    F = LN(dropout(CELU(W grid))) + grid positions; self-attention layers; then, with a codebook,
               region alignment: each patch gets a word and attends to the words (FSGR, Gao 2025)
    question   words with sine positions; layers of self-attention, cross-attention to the patches,
               feed-forward
    answer     one of a fixed list: softmax(W q) of the first token, which is the same in every question;
               or generated word by word by a caption transformer that attends to patches and question

The fusion design, section on visual question answering, keeps the encoder and replaces the caption by an
answer, chosen or generated; it leaves open how the question enters. Here it enters by cross-attention, so
that the attention of its words to the patches can be shown. Single answers are trained by cross-entropy.
Where ten people answered, each answer has a score and is trained by binary cross-entropy (Teney et al. 2018,
arXiv 1708.02711, section 3.7).

Shape legend (in addition to `types.py`): A answers, L question tokens, R questions about B pictures (without
`picture_of_row_R`: R = B).
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

    width: int = Field(256, gt=0, le=65536, description="width of the tokens")
    heads: int = Field(4, gt=0, le=1024, description="attention heads; they divide the width")
    hidden: int = Field(512, gt=0, le=65536, description="hidden width of the feed-forward parts")
    picture_layers: int = Field(1, ge=0, le=512, description="self-attention layers over the patches")
    question_layers: int = Field(
        2, gt=0, le=512, description="layers of the question, each with a look at the patches"
    )
    dropout: float = Field(
        0.1,
        ge=0,
        lt=1,
        description="dropout after each sub-layer, in the feed-forward parts and on the inputs",
    )
    max_positions: int = Field(
        32, gt=0, le=8192, description="longest question in tokens, start token included"
    )
    region_alignment: RegionAlignmentConfig | None = Field(
        None, description="region alignment with a codebook; absent: none"
    )


class PictureEncoding(NamedTuple):
    """Encoded pictures, before any question."""

    patches_BNC: Tensor
    mask_BN: Tensor | None
    embedded_BNC: Tensor
    """F: the patches before the layers; the patch contrast compares these."""
    concepts_BN: Tensor | None
    """Codebook row of each patch; None without region alignment."""

    def of(self, picture_of_row_R: Tensor) -> PictureEncoding:
        """Repeats the pictures, one row for each question."""
        return PictureEncoding._make(
            None if part is None else part.index_select(0, picture_of_row_R) for part in self
        )


class QuestionEncoding(NamedTuple):
    """Encoded pairs of picture and question."""

    patches_RNC: Tensor
    question_RLC: Tensor
    patch_mask_RN: Tensor | None
    question_mask_RL: Tensor
    looked_RLN: Tensor | None
    """Attention of each question token to the patches: last layer, averaged over heads; only with a trace."""
    concepts_RN: Tensor | None
    """Codebook row of each patch; None without region alignment."""

    @property
    def summary_RC(self) -> Tensor:
        """The first token of each question, which summarises it."""
        return self.question_RLC[:, 0]


class QuestionLayer(nn.Module):
    """Self-attention of the question, cross-attention to the patches, and feed-forward (post-LN)."""

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
        """Returns the layer's output and, with `trace`, its attention (R, H, L, N) to the patches."""
        y_RLC = self.attention_norm(
            add_dropped(y_RLC, self.attention(y_RLC, question_bias), self.dropout, self.training)
        )
        looked_RLC, weights_RHLN = self.cross(y_RLC, *self.cross.project(patches_RNC), patch_bias, trace)
        y_RLC = self.cross_norm(add_dropped(y_RLC, looked_RLC, self.dropout, self.training))
        return self.feed_forward(y_RLC), weights_RHLN


class QuestionEncoder(nn.Module):
    """Fuses patch features of width `feature_width` with questions over `vocabulary_size` words."""

    def __init__(
        self,
        config: QuestionConfig,
        feature_width: int,
        vocabulary_size: int,
        codebook: Codebook | None = None,
    ) -> None:
        """Raises ConfigError for sizes that do not fit one another, or a loss that needs captions.

        Raises ModelError for a codebook without region alignment or the reverse.
        """
        super().__init__()
        check_heads(config.width, config.heads)
        if config.region_alignment is not None and config.region_alignment.text_regulariser:
            raise ConfigError(
                "region_alignment.text_regulariser compares pictures with their captions, and questions "
                "have none: set it to false"
            )
        if (config.region_alignment is None) != (codebook is None):
            raise ModelError(
                "region alignment and a codebook go together: give both, or leave out "
                "[answerer.region_alignment] and the codebook"
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
        """Fuses each question with its picture; it joins `look` and `read`."""
        seen = self.look(features)
        return self.read(
            seen if picture_of_row_R is None else seen.of(picture_of_row_R), question_RL, lengths_R, trace
        )

    def look(self, features: VisualFeatures) -> PictureEncoding:
        """Encodes the pictures, independently of any question.

        Raises ModelError for features of another width.
        """
        if features.grid_BNC.shape[-1] != self.embed.in_features:
            raise ModelError(
                f"patch features are {features.grid_BNC.shape[-1]} wide and the model was built for "
                f"{self.embed.in_features}: "
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
        """Encodes R questions with one picture each.

        Args:
            question_RL: token ids; every question starts with the same start token, and padding is ignored.
            lengths_R: number of tokens of each question, at least 1.
        Raises:
            ModelError: a question is longer than the positions.
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
        """Patch contrast over F, with the assigned words as labels (FSGR).

        Raises ModelError where the model has no contrast head.
        """
        if self.contrast is None:
            raise ModelError(
                "this model has no patch contrast; set region_alignment.contrast_width above 0, or give its "
                "loss no weight"
            )
        return self.contrast(seen.embedded_BNC, seen.concepts_BN, seen.mask_BN)


class AnswerClassifier(nn.Module):
    """Chooses one of `answers` fixed answers."""

    def __init__(
        self,
        config: QuestionConfig,
        feature_width: int,
        vocabulary_size: int,
        answers: int,
        codebook: Codebook | None = None,
    ) -> None:
        """Raises what `QuestionEncoder` raises."""
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
        """Returns the logits (R, A)."""
        return self.choose(self.encoder(features, question_RL, lengths_R, picture_of_row_R))

    def choose(self, asked: QuestionEncoding) -> Tensor:
        """Returns the logits (R, A) from encoded pairs."""
        return self.head(asked.summary_RC)


class AnswerGenerator(nn.Module):
    """Generates answers word by word with any captioner, which reads patches and question as one grid.

    It is used like a captioner whose `encode` also takes the question; greedy and beam search of `decode.py`
    run on its memory.
    """

    def __init__(self, encoder: QuestionEncoder, captioner: Captioner) -> None:
        """`captioner` must be built for features of the encoder's width, without an encoder or alignment."""
        super().__init__()
        self.encoder = encoder
        self.captioner = captioner

    @property
    def vocabulary_size(self) -> int:
        """Number of words in the vocabulary of the answers."""
        return self.captioner.vocabulary_size

    def encode(
        self,
        features: VisualFeatures,
        question_RL: Tensor,
        lengths_R: Tensor,
        picture_of_row_R: Tensor | None = None,
    ) -> NamedTuple:
        """Returns the captioner's memory of [patches; question]."""
        return self.remember(self.encoder(features, question_RL, lengths_R, picture_of_row_R))

    def remember(self, asked: QuestionEncoding) -> NamedTuple:
        """Returns the captioner's memory of encoded pairs."""
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
        """See `Captioner.decode`."""
        return self.captioner.decode(tokens_BT, lengths_B, memory, trace)

    def start(self, memory: NamedTuple, beams: int) -> NamedTuple:
        """See `Captioner.start`."""
        return self.captioner.start(memory, beams)

    def step(
        self, tokens_R: Tensor, memory: NamedTuple, state: Any, trace: bool = False
    ) -> tuple[Tensor, NamedTuple, Trace | None]:
        """See `Captioner.step`."""
        return self.captioner.step(tokens_R, memory, state, trace)


def answer_loss(logits_RA: Tensor, answers: Tensor) -> Tensor:
    """Returns the mean loss over questions.

    `answers` (R,) are answer numbers, trained by cross-entropy. `answers` (R, A) are scores in [0, 1], the
    agreement of the annotators on each answer, trained by binary cross-entropy summed over answers, as in
    Teney et al.
    """
    if answers.dim() == 1:
        return F.cross_entropy(logits_RA, answers)
    return (
        F.binary_cross_entropy_with_logits(logits_RA, answers.to(logits_RA.dtype), reduction="none")
        .sum(1)
        .mean()
    )
