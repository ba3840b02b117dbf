"""One encoder-decoder over a picture's patches.

    patches   F = LN(dropout(CELU(W grid))); the grid's sine positions are added
    encoder   self-attention layers over the patches
    decoder   masked self-attention, cross-attention to the encoder's output, feed-forward; residuals normalised after the sum
    words     softmax(W_o y), no bias

Letters: B images, R = B*K rows, T tokens, N patches (a global token, where there is one, is the last of them), C width, H heads, D width of
one head, L decoder layers, P the pair of keys and values, V vocabulary.
"""

from __future__ import annotations

from typing import Literal, NamedTuple

import torch
from pydantic import BaseModel, ConfigDict, Field
from torch import Tensor, nn
from torch.nn import functional as F

from patchword.errors import ModelError
from patchword.layers.attention import attend
from patchword.layers.positions import grid_positions, sine_positions
from patchword.layers.transformer import (
    CrossAttention,
    EncoderLayer,
    FeedForward,
    SelfAttention,
    causal_bias,
    check_heads,
    check_length,
    grown,
    initialise,
    padding_bias,
)
from patchword.types import Decoded, Trace, VisualFeatures

_CELU_ALPHA = 1.3


class CaptionTransformerConfig(BaseModel):
    """Sizes of the model and its two optional parts."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    kind: Literal["caption_transformer"] = "caption_transformer"
    width: int = Field(512, gt=0, description="width of the tokens in encoder and decoder")
    heads: int = Field(8, gt=0, description="attention heads; they divide the width")
    hidden: int = Field(2048, gt=0, description="hidden width of the feed-forward parts")
    encoder_layers: int = Field(3, ge=0, description="self-attention layers over the patches")
    decoder_layers: int = Field(3, gt=0, description="decoder layers")
    dropout: float = Field(0.1, ge=0, lt=1, description="dropout after each sub-layer, in the feed-forward parts and on the inputs")
    max_positions: int = Field(54, gt=0, description="longest caption in tokens, start token included")
    global_token: bool = Field(False, description="the class token of the tower as one more patch, through its own projection")


class CaptionMemory(NamedTuple):
    """What the decoder reads, and what the losses on patches compare."""

    keys_BLHND: Tensor
    values_BLHND: Tensor
    bias_B11N: Tensor | None
    """-inf on padded patches; None where there are none."""
    embedded_BNC: Tensor
    """F: the patches before the encoder."""
    encoded_BNC: Tensor
    """The encoder's output, without the global token."""
    mask_BN: Tensor | None
    concepts_BN: Tensor | None
    """Codebook row of each patch; None without region alignment."""


class CaptionState(NamedTuple):
    """Keys and values of the tokens so far, of all decoder layers."""

    cache_RLPHTD: Tensor


class CaptionDecoderLayer(nn.Module):
    """Self-attention, cross-attention, feed-forward."""

    def __init__(self, config: CaptionTransformerConfig) -> None:
        super().__init__()
        self.attention = SelfAttention(config.width, config.heads)
        self.attention_norm = nn.LayerNorm(config.width)
        self.cross = CrossAttention(config.width, config.heads)
        self.cross_norm = nn.LayerNorm(config.width)
        self.feed_forward = FeedForward(config.width, config.hidden, config.dropout)
        self.dropout = config.dropout

    def forward(
        self, y_RTC: Tensor, context_RHTD: Tensor, memory: CaptionMemory, layer: int, want_weights: bool
    ) -> tuple[Tensor, Tensor | None]:
        """The layer after its own attention, whose heads' contexts are given: teacher forcing and stepping differ only before."""
        y_RTC = self.attention_norm(y_RTC + F.dropout(self.attention.merge(context_RHTD), self.dropout, self.training))
        looked_RTC, weights_RHTN = self.cross(
            y_RTC, memory.keys_BLHND[:, layer], memory.values_BLHND[:, layer], memory.bias_B11N, want_weights
        )
        y_RTC = self.cross_norm(y_RTC + F.dropout(looked_RTC, self.dropout, self.training))
        return self.feed_forward(y_RTC), weights_RHTN


class CaptionTransformer(nn.Module):
    """A captioner over patch features of width `feature_width`.

    Raises ConfigError where sizes do not fit one another.
    """

    def __init__(self, config: CaptionTransformerConfig, feature_width: int, vocabulary_size: int, codebook: None = None) -> None:
        super().__init__()
        check_heads(config.width, config.heads)
        self.config = config
        self.vocabulary_size = vocabulary_size
        self.embed = nn.Linear(feature_width, config.width)
        self.embed_norm = nn.LayerNorm(config.width)
        self.encoder = nn.ModuleList(
            EncoderLayer(config.width, config.heads, config.hidden, config.dropout) for _ in range(config.encoder_layers)
        )
        self.words = nn.Embedding(vocabulary_size, config.width)
        self.decoder = nn.ModuleList(CaptionDecoderLayer(config) for _ in range(config.decoder_layers))
        self.output = nn.Linear(config.width, vocabulary_size, bias=False)
        positions_TC = sine_positions(torch.arange(config.max_positions), config.width)
        self.register_buffer("positions_TC", positions_TC, persistent=False)
        self.embed_global = nn.Linear(feature_width, config.width) if config.global_token else None
        initialise(self)
        nn.init.normal_(self.words.weight, std=config.width**-0.5)

    def encode(self, features: VisualFeatures) -> CaptionMemory:
        """Encodes the patches and projects keys and values of every decoder layer, once.

        Raises ModelError where the features lack what the config asks for.
        """
        embedded_BNC = self._normalised(self.embed(features.grid_BNC))
        patches = embedded_BNC.shape[1]
        x_BNC, mask_BN = embedded_BNC, features.mask_BN
        if features.hw is not None:
            x_BNC = x_BNC + grid_positions(*features.hw, self.config.width, x_BNC.device).to(x_BNC.dtype)
        if self.embed_global is not None:
            x_BNC = torch.cat((x_BNC, self._global_token(features)), dim=1)
            mask_BN = None if mask_BN is None else F.pad(mask_BN, (0, 1), value=True)
        bias_B11N = padding_bias(mask_BN, x_BNC)
        for layer in self.encoder:
            x_BNC = layer(x_BNC, bias_B11N)
        projected = [layer.cross.project(x_BNC) for layer in self.decoder]
        keys_BLHND = torch.stack([keys_BHND for keys_BHND, _ in projected], dim=1)
        values_BLHND = torch.stack([values_BHND for _, values_BHND in projected], dim=1)
        return CaptionMemory(keys_BLHND, values_BLHND, bias_B11N, embedded_BNC, x_BNC[:, :patches], features.mask_BN, None)

    def decode(self, tokens_BT: Tensor, lengths_B: Tensor, memory: CaptionMemory, trace: bool = False) -> Decoded:
        """Logits (R, T, V) for the token after each given one; zeros from the length on. R may be K captions per image, image by image.

        Raises ModelError where a caption is longer than the positions.
        """
        length = tokens_BT.shape[1]
        check_length(length, self.config.max_positions)
        y_RTC = self._words(tokens_BT, self.positions_TC[:length])
        hidden_TT = causal_bias(length, y_RTC)
        weights_RHTN = None
        for number, layer in enumerate(self.decoder):
            context_RHTD, _ = attend(*layer.attention.project(y_RTC), hidden_TT)
            y_RTC, weights_RHTN = layer(y_RTC, context_RHTD, memory, number, trace and number == len(self.decoder) - 1)
        real_RT1 = (torch.arange(length, device=y_RTC.device) < lengths_B[:, None])[..., None]
        logits_RTV = self.output(y_RTC * real_RT1)  # no bias: a zero state scores zero
        return Decoded(logits_RTV, self._trace(weights_RHTN, memory) if trace else None)

    def start(self, memory: CaptionMemory, beams: int) -> CaptionState:
        """An empty cache for `beams` rows of each image."""
        images, layers, heads, _, head_width = memory.keys_BLHND.shape
        return CaptionState(memory.keys_BLHND.new_empty(images * beams, layers, 2, heads, 0, head_width))

    def step(
        self, tokens_R: Tensor, memory: CaptionMemory, state: CaptionState, trace: bool = False
    ) -> tuple[Tensor, CaptionState, Trace | None]:
        """Consumes one token per row; returns the logits (R, V) of the next. Raises ModelError where the positions are used up."""
        cache_RLPHTD = grown(state.cache_RLPHTD)
        length = cache_RLPHTD.shape[4]
        check_length(length, self.config.max_positions)
        y_R1C = self._words(tokens_R[:, None], self.positions_TC[length - 1])
        weights_RHTN = None
        for number, layer in enumerate(self.decoder):
            queries_RH1D, keys_RH1D, values_RH1D = layer.attention.project(y_R1C)
            cache_RLPHTD[:, number, 0, :, -1:] = keys_RH1D
            cache_RLPHTD[:, number, 1, :, -1:] = values_RH1D
            context_RH1D, _ = attend(queries_RH1D, cache_RLPHTD[:, number, 0], cache_RLPHTD[:, number, 1])
            y_R1C, weights_RHTN = layer(y_R1C, context_RH1D, memory, number, trace and number == len(self.decoder) - 1)
        return self.output(y_R1C[:, 0]), CaptionState(cache_RLPHTD), self._trace(weights_RHTN, memory) if trace else None

    def _normalised(self, x_BNC: Tensor) -> Tensor:
        return self.embed_norm(F.dropout(F.celu(x_BNC, _CELU_ALPHA), self.config.dropout, self.training))

    def _global_token(self, features: VisualFeatures) -> Tensor:
        if features.class_BC is None:
            raise ModelError(
                "the model was built with global_token = true and the features hold no class token; "
                "use a tower that has one (CLIP, ViT) or set global_token = false"
            )
        return self._normalised(self.embed_global(features.class_BC))[:, None]

    def _words(self, tokens_RT: Tensor, positions_TC: Tensor) -> Tensor:
        y_RTC = self.words(tokens_RT) * self.config.width**0.5 + positions_TC
        return F.dropout(y_RTC, self.config.dropout, self.training)

    def _trace(self, weights_RHTN: Tensor, memory: CaptionMemory) -> Trace:
        patches = memory.encoded_BNC.shape[1]
        attention_RTN = weights_RHTN.mean(dim=1)[..., :patches]
        return Trace(attention_BTN=attention_RTN / attention_RTN.sum(dim=-1, keepdim=True), concepts_BN=memory.concepts_BN)
