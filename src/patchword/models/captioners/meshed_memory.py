"""Meshed-Memory Transformer (Cornia, Stefanini, Baraldi, Cucchiara, CVPR 2020).

    x0       LN(dropout(ReLU(W regions)))
    encoder  attention whose keys and values end in learned slots:
             K = [W_k x ; sqrt(d_k) M_k], V = [W_v x ; sqrt(m) M_v]                             (eq. 3)
             x_i = FF(LN(x_{i-1} + attention)); the outputs of all levels are kept
    decoder  y  = LN(y + self-attention(y))
             c_i = LN(y + cross-attention(y, x_i)), the same weights for every level i
             a_i = sigmoid(W_i [y ; c_i] + b_i)                                                 (eq. 7)
             y  = FF(sum_i a_i * c_i / sqrt(levels))                                            (eq. 5)
    words    softmax(W_o y), no bias

The published code recognises padded regions by their sum after LayerNorm, which misses all of them; here the
mask comes with the features.

Shape legend: B images, R = B*K rows, T tokens, N regions, M slots, C width, H heads, D width of one head, S
encoder levels, L decoder layers, V vocabulary, X = S*H.
"""

from __future__ import annotations

from typing import Literal, NamedTuple

import torch
from pydantic import BaseModel, ConfigDict, Field
from torch import Tensor, nn
from torch.nn import functional as F

from patchword.layers.attention import attend
from patchword.layers.linear import Linear, linear
from patchword.layers.positions import sine_positions
from patchword.layers.transformer import (
    AttentionSource,
    CrossAttention,
    FeedForward,
    SelfAttention,
    add_dropped,
    cache_type,
    causal_bias,
    check_heads,
    check_length,
    each_layer,
    grown,
    initialise,
    merge_heads,
    padding_bias,
    relu_dropped_,
    weights_of_rows,
)
from patchword.types import Decoded, Trace, VisualFeatures


class MeshedMemoryConfig(BaseModel):
    """Sizes of the model; the defaults are the paper's (38.4 M parameters at 10,201 words, width 2048)."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    kind: Literal["meshed_memory"] = "meshed_memory"
    width: int = Field(512, gt=0, le=65536, description="width of the tokens in encoder and decoder")
    heads: int = Field(8, gt=0, le=1024, description="attention heads; they divide the width")
    hidden: int = Field(2048, gt=0, le=65536, description="hidden width of the feed-forward parts")
    encoder_layers: int = Field(
        3, gt=0, le=512, description="encoder levels; the decoder looks at all of them"
    )
    decoder_layers: int = Field(3, gt=0, le=512, description="decoder layers")
    slots: int = Field(40, ge=0, le=1_000_000, description="learned memory slots in each encoder layer")
    dropout: float = Field(
        0.1, ge=0, lt=1, description="dropout after each attention and in the feed-forward parts"
    )
    max_positions: int = Field(
        54, gt=0, le=8192, description="longest caption in tokens, start token included"
    )


class MeshedMemory(NamedTuple):
    """What the decoder reads: keys and values of every decoder layer for all encoder levels.

    The heads of the levels stand side by side.
    """

    keys_BLXND: Tensor
    """X = S*H: levels times heads."""
    values_BLXND: Tensor
    bias_B11N: Tensor | None
    """-inf on padded regions; None where there is no padding."""

    def by_layer(self) -> list[AttentionSource]:
        """Returns the keys and values for the cross-attention of each decoder layer."""
        return each_layer(self.keys_BLXND, self.values_BLXND, self.bias_B11N)


class MemoryAugmentedLayer(nn.Module):
    """An encoder layer whose attention also sees learned slots, its a-priori knowledge (section 3.1)."""

    def __init__(self, config: MeshedMemoryConfig) -> None:
        super().__init__()
        self.attention = SelfAttention(config.width, config.heads)
        self.slot_keys_MC = nn.Parameter(torch.empty(config.slots, config.width))
        self.slot_values_MC = nn.Parameter(torch.empty(config.slots, config.width))
        self.attention_norm = nn.LayerNorm(config.width)
        self.feed_forward = FeedForward(config.width, config.hidden, config.dropout)
        self.dropout = config.dropout

    def forward(self, x_BNC: Tensor, mask_BN: Tensor | None) -> Tensor:
        """Encodes the regions, (B, N, C); `mask_BN` hides padded regions and never the slots."""
        queries_BHND, keys_BHND, values_BHND = self.attention.project(x_BNC)
        keys_BHND = torch.cat(
            (keys_BHND, self._slots(self.slot_keys_MC, keys_BHND, keys_BHND.shape[-1])), dim=2
        )
        values_BHND = torch.cat(
            (values_BHND, self._slots(self.slot_values_MC, values_BHND, len(self.slot_values_MC))), dim=2
        )
        if mask_BN is not None:
            mask_BN = F.pad(mask_BN, (0, len(self.slot_keys_MC)), value=True)
        # Copying the queries frees the common product, because keys and values are copies already.
        context_BHND, _ = attend(
            queries_BHND.contiguous(), keys_BHND, values_BHND, padding_bias(mask_BN, x_BNC)
        )
        mixed_BNC = add_dropped(x_BNC, self.attention.merge(context_BHND), self.dropout, self.training)
        return self.feed_forward(self.attention_norm(mixed_BNC))

    def _slots(self, slots_MC: Tensor, like_BHND: Tensor, scale: int) -> Tensor:
        apart = (slots_MC.shape[0], like_BHND.shape[1], like_BHND.shape[3])
        slots_HMD = (slots_MC * scale**0.5).view(apart).transpose(0, 1)
        return slots_HMD.expand(like_BHND.shape[0], -1, -1, -1)


class MeshedDecoderLayer(nn.Module):
    """Self-attention, then gated cross-attention to every encoder level with shared weights.

    Source: section 3.2, eq. 5-7.
    """

    def __init__(self, config: MeshedMemoryConfig) -> None:
        super().__init__()
        self.attention = SelfAttention(config.width, config.heads)
        self.attention_norm = nn.LayerNorm(config.width)
        self.cross = CrossAttention(config.width, config.heads)
        self.cross_norm = nn.LayerNorm(config.width)
        self.gates = nn.ModuleList(
            Linear(2 * config.width, config.width) for _ in range(config.encoder_layers)
        )
        self.feed_forward = FeedForward(config.width, config.hidden, config.dropout)
        self.dropout = config.dropout

    def forward(
        self, y_RTC: Tensor, context_RHTD: Tensor, seen: AttentionSource, want_weights: bool
    ) -> tuple[Tensor, Tensor | None]:
        """Applies the layer after its self-attention, whose contexts are given.

        Teacher forcing and stepping differ only before this point.
        """
        y_RTC = self.attention_norm(
            add_dropped(y_RTC, self.attention.merge(context_RHTD), self.dropout, self.training)
        )
        levels = len(self.gates)
        queries_BHTD = self.cross.queries(y_RTC, seen.keys_BHND.shape[0]).repeat(1, levels, 1, 1)
        looked_BXTD, weights = attend(
            queries_BHTD, seen.keys_BHND, seen.values_BHND, seen.bias_B11N, want_weights
        )
        meshed_RTC = 0.0
        for gate, context_BHTD in zip(self.gates, looked_BXTD.chunk(levels, dim=1), strict=True):
            looked_RTC = self.cross.output(merge_heads(context_BHTD).view(y_RTC.shape))
            looked_RTC = self.cross_norm(add_dropped(y_RTC, looked_RTC, self.dropout, self.training))
            # Computes the product with [y ; c] without storing the concatenation.
            own_CC, looked_CC = gate.weight.chunk(2, dim=1)
            gate_RTC = (linear(looked_RTC, looked_CC, gate.bias) + linear(y_RTC, own_CC)).sigmoid_()
            meshed_RTC = meshed_RTC + gate_RTC * looked_RTC
        return self.feed_forward(meshed_RTC * levels**-0.5), weights


class MeshedMemoryTransformer(nn.Module):
    """A captioner (see `patchword.types.Captioner`) after Cornia 2020.

    `feature_width` is the width of `VisualFeatures.grid_BNC`. Only the grid and its mask are used.
    """

    def __init__(self, config: MeshedMemoryConfig, feature_width: int, vocabulary_size: int) -> None:
        super().__init__()
        check_heads(config.width, config.heads)
        self.config = config
        self.vocabulary_size = vocabulary_size
        self.state_type = cache_type(config.decoder_layers)
        self.embed = Linear(feature_width, config.width)
        self.embed_norm = nn.LayerNorm(config.width)
        self.encoder = nn.ModuleList(MemoryAugmentedLayer(config) for _ in range(config.encoder_layers))
        self.words = nn.Embedding(vocabulary_size, config.width)
        self.decoder = nn.ModuleList(MeshedDecoderLayer(config) for _ in range(config.decoder_layers))
        self.output = Linear(config.width, vocabulary_size, bias=False)
        positions_TC = sine_positions(torch.arange(1, config.max_positions + 1), config.width)
        # saved with the model, because published weights hold another table
        self.register_buffer("positions_TC", positions_TC)
        initialise(self)
        for layer in self.encoder:
            nn.init.xavier_uniform_(layer.slot_keys_MC)
            nn.init.xavier_uniform_(layer.slot_values_MC)
        nn.init.xavier_uniform_(self.words.weight)

    def encode_levels(self, features: VisualFeatures) -> Tensor:
        """Returns the outputs of all encoder levels, bottom first, (B, S, N, C)."""
        x_BNC = self.embed_norm(
            relu_dropped_(self.embed(features.grid_BNC), self.config.dropout, self.training)
        )
        levels = []
        for layer in self.encoder:
            x_BNC = layer(x_BNC, features.mask_BN)
            levels.append(x_BNC)
        return torch.stack(levels, dim=1)

    def encode(self, features: VisualFeatures) -> MeshedMemory:
        """Encodes the regions and projects keys and values of every decoder layer, once."""
        levels_BSNC = self.encode_levels(features)
        projected = [layer.cross.project(levels_BSNC) for layer in self.decoder]
        keys_BLXND = torch.stack([keys_BSHND.flatten(1, 2) for keys_BSHND, _ in projected], dim=1)
        values_BLXND = torch.stack([values_BSHND.flatten(1, 2) for _, values_BSHND in projected], dim=1)
        return MeshedMemory(keys_BLXND, values_BLXND, padding_bias(features.mask_BN, levels_BSNC))

    def decode(
        self, tokens_BT: Tensor, lengths_B: Tensor, memory: MeshedMemory, trace: bool = False
    ) -> Decoded:
        """Returns the logits (R, T, V) for the token after each given one; zeros from the length on.

        R may be K captions per image, image by image. The trace holds the last layer's attention over
        regions, averaged over heads and levels. Raises ModelError where a caption is longer than the
        positions.
        """
        length = tokens_BT.shape[1]
        check_length(length, self.config.max_positions)
        y_RTC = self.words(tokens_BT) + self.positions_TC[:length]
        hidden_TT = causal_bias(length, y_RTC)
        weights_BXTN = None
        for layer, seen in zip(self.decoder, memory.by_layer(), strict=True):
            queries_RHTD, keys_RHTD, values_RHTD = layer.attention.project(y_RTC)
            context_RHTD, _ = attend(queries_RHTD, keys_RHTD, values_RHTD, hidden_TT)
            y_RTC, weights_BXTN = layer(y_RTC, context_RHTD, seen, trace and seen.last)
        real_RT1 = (torch.arange(length, device=y_RTC.device) < lengths_B[:, None])[..., None]
        logits_RTV = self.output(y_RTC * real_RT1)  # without a bias, a zero state has zero logits
        return Decoded(logits_RTV, _trace(weights_BXTN, real_RT1))

    def start(self, memory: MeshedMemory, beams: int) -> NamedTuple:
        """Returns empty caches for `beams` rows of each image."""
        images, layers, _, _, head_width = memory.keys_BLXND.shape
        shape = (images * beams, 2, self.config.heads, 0, head_width)
        return self.state_type(*(memory.keys_BLXND.new_empty(shape) for _ in range(layers)))

    def step(
        self, tokens_R: Tensor, memory: MeshedMemory, state: NamedTuple, trace: bool = False
    ) -> tuple[Tensor, NamedTuple, Trace | None]:
        """Consumes one token per row and returns the logits (R, V) of the next.

        Raises ModelError where all positions are used.
        """
        length = state[0].shape[3] + 1
        check_length(length, self.config.max_positions)
        y_R1C = (self.words(tokens_R) + self.positions_TC[length - 1])[:, None]
        caches, weights_BXTN = [], None
        for layer, cache_RPHTD, seen in zip(self.decoder, state, memory.by_layer(), strict=True):
            queries_RH1D, keys_RH1D, values_RH1D = layer.attention.project(y_R1C)
            caches.append(grown(cache_RPHTD, keys_RH1D, values_RH1D))
            keys_RHTD, values_RHTD = caches[-1].unbind(dim=1)
            context_RH1D, _ = attend(queries_RH1D, keys_RHTD, values_RHTD)
            y_R1C, weights_BXTN = layer(y_R1C, context_RH1D, seen, trace and seen.last)
        real_R11 = torch.ones(tokens_R.shape[0], 1, 1, dtype=torch.bool, device=tokens_R.device)
        return self.output(y_R1C[:, 0]), self.state_type(*caches), _trace(weights_BXTN, real_R11)


def _trace(weights_BXTN: Tensor | None, real_RT1: Tensor) -> Trace | None:
    """Builds a trace of the attention over regions, zero where there is no word."""
    return (
        None
        if weights_BXTN is None
        else Trace(attention_BTN=weights_of_rows(weights_BXTN, len(real_RT1)).mean(dim=1) * real_RT1)
    )
