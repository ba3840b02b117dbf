"""Pictures written token by token, like text: the decoder of DALL-E and that of Parti.

    DALL-E   Ramesh et al. 2021 (arXiv 2102.12092), section 2.2: one causal transformer over [text; picture].
             Padding of the text has a learnt token for each position. Loss: 1/8 of the text's cross-entropy
             and 7/8 of the picture's. Optional sparse masks: a layer sees the picture's row, its column, or
             (the last one) a neighbourhood, and always all of the text.
    Parti    Yu et al. 2022 (arXiv 2206.10789), section 2: the text is encoded in both directions (here by the
             text tower), and a decoder with cross-attention writes the picture. Loss: the picture's
             cross-entropy. Texts left out while training allow guidance: logits = u + w (c - u).

Both own a codec, whose tokens they write. A token is computed once: its keys and values stay in a state that
`step` extends in place.

Shape legend: B pictures, L text positions, N picture tokens, S = L + N positions (DALL-E) or N (Parti), K
codes, V words, C width, H heads, D width of a head, T tokens of a call.
"""

from __future__ import annotations

import math
from typing import Annotated, Literal, NamedTuple

import torch
import torch.nn.functional as F
from pydantic import BaseModel, Field, model_validator
from torch import Tensor, nn

from patchword.layers.attention import attend, hide
from patchword.models.painters.discrete_vae import DiscreteVae, DiscreteVaeConfig
from patchword.models.painters.vit_vqgan import VitVqgan, VitVqganConfig

CodecSettings = Annotated[DiscreteVaeConfig | VitVqganConfig, Field(discriminator="kind")]
TEXT_WEIGHT = 1 / 8
"""Share of the text's cross-entropy in DALL-E's loss."""
NEIGHBOURHOOD = 5
"""Side of the window that the last sparse layer sees (paper: 11, of 32 cells)."""


class TransformerConfig(BaseModel, extra="forbid", frozen=True):
    """Settings that both transformers share."""

    codec: CodecSettings
    width: int = Field(128, ge=8, le=16384, description="width of the transformer")
    layers: int = Field(4, ge=1, le=128, description="layers of the decoder")
    heads: int = Field(4, ge=1, le=128, description="attention heads")
    dropout: float = Field(0.0, ge=0, lt=1, description="dropout after attention and feed-forward")
    drop_text: float = Field(
        0.1, ge=0, lt=1, description="share of texts left out while training; 0: no guidance afterwards"
    )

    @model_validator(mode="after")
    def _heads_divide(self) -> TransformerConfig:
        if self.width % self.heads:
            raise ValueError(f"width is {self.width}, which {self.heads} heads do not divide: change one")
        return self

    @property
    def size(self) -> int:
        """Side of its pictures in pixels."""
        return self.codec.size


class DalleConfig(TransformerConfig, frozen=True):
    """Settings of the decoder over text and picture tokens."""

    kind: Literal["dalle"] = "dalle"
    text_length: int = Field(
        32, ge=2, le=4096, description="text positions, start and end counted (paper: 256)"
    )
    sparse: bool = Field(False, description="sparse masks over rows, columns and neighbourhoods")


class PartiConfig(TransformerConfig, frozen=True):
    """Settings of the decoder with cross-attention to an encoded text."""

    kind: Literal["parti"] = "parti"


class State(NamedTuple):
    """Keys and values of what was written so far; `step` extends them in place."""

    keys: tuple[Tensor, ...]
    """(B, H, S, D) for every layer; positions from `length` on are not written yet."""
    values: tuple[Tensor, ...]
    length: int


class Layer(nn.Module):
    """Self-attention, cross-attention where there is something to attend to, feed-forward; norms come
    first.
    """

    def __init__(self, config: TransformerConfig, text_width: int | None) -> None:
        super().__init__()
        width = config.width
        self.heads, self.dropout = config.heads, nn.Dropout(config.dropout)
        self.norm, self.norm_forward = nn.LayerNorm(width), nn.LayerNorm(width)
        self.project, self.out = nn.Linear(width, 3 * width), nn.Linear(width, width)
        self.forward_in, self.forward_out = nn.Linear(width, 4 * width), nn.Linear(4 * width, width)
        self.crosses = text_width is not None
        if text_width is not None:
            self.norm_cross = nn.LayerNorm(width)
            self.query = nn.Linear(width, width)
            self.project_text = nn.Linear(text_width, 2 * width)
            self.out_cross = nn.Linear(width, width)

    def tell(self, tokens_BLC: Tensor) -> tuple[Tensor, Tensor]:
        """Keys and values of the text (B, H, L, D)."""
        keys_BLC, values_BLC = self.project_text(tokens_BLC).chunk(2, -1)
        return self._split(keys_BLC), self._split(values_BLC)

    def forward(
        self,
        x_BTC: Tensor,
        bias: Tensor,
        past: tuple[Tensor, Tensor] | None,
        text: tuple[Tensor, Tensor, Tensor] | None,
    ) -> Tensor:
        """Tokens (B, T, C). `bias` broadcasts to (B, H, T, T); the first T places of `past`, keys and values
        (B, H, S, D), are written for later steps; `text` has keys, values and bias.
        """
        queries, keys, values = map(self._split, self.project(self.norm(x_BTC)).chunk(3, -1))
        if past is not None:
            for kept, made in zip(past, (keys, values), strict=True):
                kept[:, :, : made.shape[2]] = made
        x_BTC = x_BTC + self.dropout(self.out(_merged(attend(queries, keys, values, bias)[0])))
        if text is not None:
            asked = self._split(self.query(self.norm_cross(x_BTC)))
            x_BTC = x_BTC + self.dropout(self.out_cross(_merged(attend(asked, *text)[0])))
        inner_BTC = self.forward_out(F.gelu(self.forward_in(self.norm_forward(x_BTC))))
        return x_BTC + self.dropout(inner_BTC)

    def step(
        self,
        x_BC: Tensor,
        past: tuple[Tensor, Tensor],
        at: int,
        bias_S: Tensor | None,
        text: tuple[Tensor, Tensor, Tensor] | None,
    ) -> Tensor:
        """One token (B, C) at place `at` after what `past` holds, which is extended by it; the numbers that
        `forward` has there, without dropout. `bias_S` is None where the token sees everything before it.

        Its products are so small that what torch does around them costs as much as they do, hence few calls:
        no axis of one token, one product for scores and bias.
        """
        made_B3HD = self.project(self.norm(x_BC)).view(len(x_BC), 3, self.heads, -1)
        query_BHD, key_BHD, value_BHD = made_B3HD.unbind(1)
        keys_BHSD, values_BHSD = past
        keys_BHSD[:, :, at], values_BHSD[:, :, at] = key_BHD, value_BHD
        seen = (keys_BHSD[:, :, : at + 1], values_BHSD[:, :, : at + 1])
        x_BC = x_BC + self.out(_look(query_BHD, *seen, bias_S))
        if text is not None:
            asked_BHD = self.query(self.norm_cross(x_BC)).view_as(query_BHD)
            x_BC = x_BC + self.out_cross(_look(asked_BHD, *text))
        return x_BC + self.forward_out(F.gelu(self.forward_in(self.norm_forward(x_BC))))

    def _split(self, x_BTC: Tensor) -> Tensor:
        return x_BTC.unflatten(-1, (self.heads, -1)).transpose(1, 2)


class PicturePositions(nn.Module):
    """Embeddings of picture tokens: of the code, of its row and of its column."""

    def __init__(self, codes: int, side: int, width: int) -> None:
        super().__init__()
        self.side = side
        self.codes = nn.Embedding(codes, width)
        self.rows = nn.Parameter(torch.randn(side, width) * 0.02)
        self.columns = nn.Parameter(torch.randn(side, width) * 0.02)
        nn.init.normal_(self.codes.weight, std=0.02)

    def forward(self, ids_BT: Tensor, first: int) -> Tensor:
        """(B, T, C) of codes that stand from position `first` on."""
        at_T = torch.arange(first, first + ids_BT.shape[1], device=ids_BT.device)
        return self.codes(ids_BT) + self.rows[at_T // self.side] + self.columns[at_T % self.side]

    def one(self, ids_B: Tensor, at: int) -> Tensor:
        """(B, C) of codes that all stand at one position."""
        return self.codes(ids_B) + self.rows[at // self.side] + self.columns[at % self.side]


class Dalle(nn.Module):
    """One causal transformer over text and picture.

    Attributes:
        config: its settings.
        codec: what its tokens mean; trained first, then held.
    """

    def __init__(self, config: DalleConfig, vocabulary: int) -> None:
        """`vocabulary` is V."""
        super().__init__()
        self.config, self.codec = config, build_codec(config.codec)
        width, length = config.width, config.text_length
        self.cells = self.codec.side**2
        self.words = nn.Embedding(vocabulary, width)
        self.word_positions = nn.Parameter(torch.randn(length, width) * 0.02)
        self.padding = nn.Parameter(torch.randn(length, width) * 0.02)
        self.picture = PicturePositions(self.codec.codes, self.codec.side, width)
        self.layers = nn.ModuleList(Layer(config, None) for _ in range(config.layers))
        self.norm = nn.LayerNorm(width)
        self.to_words, self.to_codes = nn.Linear(width, vocabulary), nn.Linear(width, self.codec.codes)
        self.biases: Tensor
        self.register_buffer("biases", self._biases(), persistent=False)
        nn.init.normal_(self.words.weight, std=0.02)

    def forward(self, words_BL: Tensor, real_BL: Tensor, ids_BN: Tensor) -> tuple[Tensor, Tensor]:
        """Logits of the words after each of the first L - 1 positions (B, L - 1, V), and of all picture
        tokens (B, N, K). `real_BL` is False at padding.
        """
        x_BSC = torch.cat([self._told(words_BL, real_BL), self.picture(ids_BN[:, :-1], 0)], 1)
        for layer, bias_SS in zip(self.layers, self.biases, strict=True):
            x_BSC = layer(x_BSC, bias_SS[: x_BSC.shape[1], : x_BSC.shape[1]], None, None)
        x_BSC = self.norm(x_BSC)
        last = self.config.text_length - 1
        return self.to_words(x_BSC[:, :last]), self.to_codes(x_BSC[:, last:])

    def start(self, words_BL: Tensor, real_BL: Tensor) -> tuple[Tensor, State]:
        """Logits of the first picture token (B, K), and the state after the text."""
        shape = (
            len(words_BL),
            self.config.heads,
            len(self.biases[0]),
            self.config.width // self.config.heads,
        )
        state = empty_state(shape, len(self.layers), self.to_codes.weight)
        x_BLC, length = self._told(words_BL, real_BL), self.config.text_length
        parts = zip(self.layers, self.biases, state.keys, state.values, strict=True)
        for layer, bias_SS, keys, values in parts:
            x_BLC = layer(x_BLC, bias_SS[:length, :length], (keys, values), None)
        return self.to_codes(self.norm(x_BLC[:, -1])), state._replace(length=length)

    def step(self, ids_B: Tensor, state: State) -> tuple[Tensor, State]:
        """Logits of the next picture token (B, K) after the one that was chosen last."""
        at, sparse = state.length, self.config.sparse
        x_BC = self.picture.one(ids_B, at - self.config.text_length)
        parts = zip(self.layers, self.biases, state.keys, state.values, strict=True)
        for layer, bias_SS, keys, values in parts:
            bias_S = bias_SS[at, : at + 1] if sparse else None
            x_BC = layer.step(x_BC, (keys, values), at, bias_S, None)
        return self.to_codes(self.norm(x_BC)), state._replace(length=at + 1)

    def _told(self, words_BL: Tensor, real_BL: Tensor) -> Tensor:
        told_BLC = torch.where(real_BL[..., None], self.words(words_BL), self.padding)
        return told_BLC + self.word_positions

    def _biases(self) -> Tensor:
        """Additive masks of every layer, (layers, S, S)."""
        length, side = self.config.text_length, self.codec.side
        total = length + self.cells
        seen_SS = torch.ones(total, total, dtype=torch.bool).tril()
        masks = []
        for number in range(self.config.layers):
            mask_SS = seen_SS.clone()
            if self.config.sparse:
                last = number == self.config.layers - 1
                kept_NN = _neighbours(side) if last else _axis(side, columns=number % 4 == 2)
                mask_SS[length:, length:] &= kept_NN
            masks.append(hide(mask_SS))
        return torch.stack(masks)


class Parti(nn.Module):
    """A decoder of picture tokens with cross-attention to the text.

    Attributes:
        config: its settings.
        codec: what its tokens mean; trained first, then held.
    """

    def __init__(self, config: PartiConfig, text_width: int) -> None:
        """`text_width` is the width of the text tower's tokens."""
        super().__init__()
        self.config, self.codec = config, build_codec(config.codec)
        self.cells = self.codec.side**2
        self.first = nn.Parameter(torch.randn(config.width) * 0.02)
        self.picture = PicturePositions(self.codec.codes, self.codec.side, config.width)
        self.layers = nn.ModuleList(Layer(config, text_width) for _ in range(config.layers))
        self.norm = nn.LayerNorm(config.width)
        self.to_codes = nn.Linear(config.width, self.codec.codes)

    def tell(self, tokens_BLC: Tensor, mask_BL: Tensor) -> tuple[tuple[Tensor, Tensor, Tensor], ...]:
        """Keys, values and bias of the text for every layer, the same for all tokens."""
        bias = hide(mask_BL, tokens_BLC.dtype)[:, None, None]
        return tuple((*layer.tell(tokens_BLC), bias) for layer in self.layers)

    def forward(self, told: tuple[tuple[Tensor, Tensor, Tensor], ...], ids_BN: Tensor) -> Tensor:
        """Logits of all picture tokens (B, N, K)."""
        first_B1C = self.first.expand(len(ids_BN), 1, -1)
        x_BNC = torch.cat([first_B1C, self.picture(ids_BN[:, :-1], 0)], 1)
        bias_NN = hide(torch.ones(self.cells, self.cells, dtype=torch.bool, device=x_BNC.device).tril())
        for layer, text in zip(self.layers, told, strict=True):
            x_BNC = layer(x_BNC, bias_NN, None, text)
        return self.to_codes(self.norm(x_BNC))

    def start(self, told: tuple[tuple[Tensor, Tensor, Tensor], ...]) -> tuple[Tensor, State]:
        """Logits of the first picture token (B, K), and the state."""
        rows = len(told[0][0])
        shape = (rows, self.config.heads, self.cells, self.config.width // self.config.heads)
        state = empty_state(shape, len(self.layers), self.to_codes.weight)
        return self._advance(self.first.expand(rows, -1), told, state)

    def step(
        self, ids_B: Tensor, told: tuple[tuple[Tensor, Tensor, Tensor], ...], state: State
    ) -> tuple[Tensor, State]:
        """Logits of the next picture token (B, K) after the one that was chosen last."""
        return self._advance(self.picture.one(ids_B, state.length - 1), told, state)

    def _advance(
        self, x_BC: Tensor, told: tuple[tuple[Tensor, Tensor, Tensor], ...], state: State
    ) -> tuple[Tensor, State]:
        for layer, text, keys, values in zip(self.layers, told, state.keys, state.values, strict=True):
            x_BC = layer.step(x_BC, (keys, values), state.length, None, text)
        return self.to_codes(self.norm(x_BC)), state._replace(length=state.length + 1)


def build_codec(config: DiscreteVaeConfig | VitVqganConfig) -> DiscreteVae | VitVqgan:
    """The codec of these settings, with random weights."""
    return DiscreteVae(config) if isinstance(config, DiscreteVaeConfig) else VitVqgan(config)


def empty_state(shape: tuple[int, ...], layers: int, like: Tensor) -> State:
    """Room for keys and values (B, H, S, D) of every layer."""
    keys = tuple(like.new_zeros(shape) for _ in range(layers))
    return State(keys, tuple(like.new_zeros(shape) for _ in range(layers)), 0)


def _look(query_BHD: Tensor, keys_BHND: Tensor, values_BHND: Tensor, bias: Tensor | None) -> Tensor:
    """What one token sees, (B, C); `bias` broadcasts to (B, H, 1, N)."""
    rows, heads, width = query_BHD.shape
    query_R1D = query_BHD.reshape(rows * heads, 1, width)
    keys_RND, values_RND = keys_BHND.flatten(0, 1), values_BHND.flatten(0, 1)
    if bias is None:
        added_R1N, weight = query_R1D.new_zeros(1, 1, 1), 0.0
    else:
        added_R1N, weight = bias.expand(rows, heads, 1, -1).reshape(rows * heads, 1, -1), 1.0
    scale = 1 / math.sqrt(width)
    scores_R1N = torch.baddbmm(added_R1N, query_R1D, keys_RND.transpose(1, 2), beta=weight, alpha=scale)
    return torch.bmm(scores_R1N.softmax(-1), values_RND).view(rows, heads * width)


def _merged(context_BHTD: Tensor) -> Tensor:
    return context_BHTD.transpose(1, 2).flatten(2)


def _axis(side: int, columns: bool) -> Tensor:
    """Which picture tokens share a row or a column, (N, N). Rows also see the `side` tokens before, as the
    paper's row attention does.
    """
    at_N = torch.arange(side * side)
    if columns:
        return (at_N % side)[:, None] == (at_N % side)[None]
    before_NN = at_N[:, None] - at_N[None]
    return (before_NN >= 0) & (before_NN <= side)


def _neighbours(side: int) -> Tensor:
    """Which picture tokens are near each other on the picture, (N, N)."""
    at_N, half = torch.arange(side * side), NEIGHBOURHOOD // 2
    rows_NN = (at_N // side)[:, None] - (at_N // side)[None]
    columns_NN = (at_N % side)[:, None] - (at_N % side)[None]
    return (rows_NN.abs() <= half) & (columns_NN.abs() <= half)
