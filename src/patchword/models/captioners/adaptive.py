"""Adaptive attention: a captioner that decides for each word whether to attend to the picture.

Lu, Xiong, Parikh, Socher: Knowing When to Look. CVPR 2017.

    v_i = ReLU(W_a a_i)      v^g = ReLU(W_b mean a_i)                              (equations 14, 15)
    x_t = [w_t; v^g]         h_t, m_t = LSTM(x_t, h_{t-1}, m_{t-1})
    z_t = w_h^T tanh(W_v V + W_g h_t)                                              (equation 6)
    g_t = sigmoid(W_x x_t + W_h h_{t-1})     s_t = g_t * tanh(m_t)   the visual sentinel (equations 9, 10)
    [alpha_t; beta_t] = softmax([z_t; w_h^T tanh(W_s s_t + W_g h_t)])              (equation 12)
    c_t = sum_i alpha_ti v_i + beta_t s_t    p_t = softmax(W_p (c_t + h_t))        (equations 11, 13)

beta_t is the weight of the sentinel: 1 means that the word depends on the previous words alone. (The paper
writes c_t with a separate softmax over the patches, weighted by 1 - beta_t; the numbers are the same.)
Attention uses the current state and feeds nothing back into the LSTM, so teacher forcing runs the LSTM first
and then attends for all words at once.

Shape legend: that of `patchword.types`, and A width of the attention, S width of the LSTM and of the mapped
patches, E width of a word, X width of the LSTM's input (E + S), R rows (B, or B*K beams).
"""

from __future__ import annotations

from typing import Literal, NamedTuple

import torch
from pydantic import BaseModel, ConfigDict, Field
from torch import Tensor, nn

from patchword.layers.additive import tanh_scores
from patchword.layers.features import grid_of, masked_mean
from patchword.layers.linear import Linear
from patchword.layers.packing import at_words, valid
from patchword.layers.recurrent import LstmState, lstm_sequence
from patchword.types import Decoded, Trace, VisualFeatures


class AdaptiveConfig(BaseModel):
    """Sizes of the model."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    kind: Literal["adaptive"] = Field("adaptive", description="Name of this captioner.")
    word_width: int = Field(512, gt=0, le=65536, description="Width of a word embedding.")
    width: int = Field(512, gt=0, le=65536, description="Width of the LSTM and of the mapped patches.")
    attention_width: int = Field(
        49,
        gt=0,
        le=65536,
        description="Width in which patches and state are compared (paper: the number of patches, 49).",
    )
    dropout: float = Field(0.5, ge=0, lt=1, description="Dropout before the output layer.")
    word_dropout: float = Field(0.0, ge=0, lt=1, description="Dropout of the word embeddings.")


class AdaptiveMemory(NamedTuple):
    """What the decoder reads of B pictures: mapped patches, their attention keys, and a picture vector."""

    patches_BNS: Tensor
    keys_BNA: Tensor
    mask_BN: Tensor | None
    picture_BS: Tensor


class Sentinel(nn.Module):
    """The visual sentinel: the part of the LSTM's memory that may replace the picture."""

    def __init__(self, input_width: int, width: int) -> None:
        super().__init__()
        self.input = Linear(input_width, width)
        self.hidden = Linear(width, width, bias=False)

    def forward(self, inputs_RTX: Tensor, previous_RTS: Tensor, cells_RTS: Tensor) -> Tensor:
        """Equations 9 and 10 for the inputs x_t, the states before them and the memory cells after them."""
        return torch.sigmoid(self.input(inputs_RTX) + self.hidden(previous_RTS)) * cells_RTS.tanh()


class Adaptive(nn.Module):
    """A captioner (see `patchword.types.Captioner`) over grids of `feature_width` channels."""

    def __init__(self, config: AdaptiveConfig, feature_width: int, vocabulary_size: int) -> None:
        super().__init__()
        self.config = config
        self.feature_width = feature_width
        self.vocabulary_size = vocabulary_size
        self.embedding = nn.Embedding(vocabulary_size, config.word_width)
        nn.init.uniform_(self.embedding.weight, -0.1, 0.1)
        self.word_dropout = nn.Dropout(config.word_dropout)
        self.patch = Linear(feature_width, config.width)
        self.picture = Linear(feature_width, config.width)
        self.recurrence = nn.LSTMCell(config.word_width + config.width, config.width)
        self.sentinel = Sentinel(config.word_width + config.width, config.width)
        self.key = Linear(config.width, config.attention_width, bias=False)
        self.sentinel_key = Linear(config.width, config.attention_width, bias=False)
        self.query = Linear(config.width, config.attention_width, bias=False)
        self.score = nn.Linear(config.attention_width, 1, bias=False)
        self.dropout = nn.Dropout(config.dropout)
        self.words = Linear(config.width, vocabulary_size)
        nn.init.uniform_(self.words.weight, -0.1, 0.1)
        nn.init.zeros_(self.words.bias)

    def encode(self, features: VisualFeatures) -> AdaptiveMemory:
        """Returns the mapped patches, their keys and the picture vector.

        Raises ModelError where the features are not `feature_width` wide.
        """
        grid_BNC = grid_of(features, self.feature_width)
        patches_BNS = self.patch(grid_BNC).relu()
        picture_BS = self.picture(masked_mean(grid_BNC, features.mask_BN)).relu()
        return AdaptiveMemory(patches_BNS, self.key(patches_BNS), features.mask_BN, picture_BS)

    def decode(
        self, tokens_BT: Tensor, lengths_B: Tensor, memory: AdaptiveMemory, trace: bool = False
    ) -> Decoded:
        """Teacher forcing: runs the LSTM over all words, then one attention for all of them."""
        valid_BT = valid(lengths_B, tokens_BT.shape[1])
        hiddens_BTS, sentinels_BTS, _ = self._run(tokens_BT, memory.picture_BS, self.start(memory, 1))
        contexts_BTS, attention_BTN, sentinel_BT = self._look(memory, hiddens_BTS, sentinels_BTS)
        logits_BTV = at_words(self._logits, contexts_BTS + hiddens_BTS, valid_BT)
        if not trace:
            return Decoded(logits_BTV)
        return Decoded(
            logits_BTV,
            Trace(attention_BTN=attention_BTN * valid_BT[..., None], sentinel_BT=sentinel_BT * valid_BT),
        )

    def start(self, memory: AdaptiveMemory, beams: int) -> LstmState:
        """Returns the zero state of B*beams rows; the picture enters with every word."""
        nothing_RS = torch.zeros_like(memory.picture_BS).repeat_interleave(beams, 0)
        return LstmState(nothing_RS, nothing_RS)

    def step(
        self, tokens_R: Tensor, memory: AdaptiveMemory, state: LstmState, trace: bool = False
    ) -> tuple[Tensor, LstmState, Trace | None]:
        """Decodes one word for every row; the beams of a picture share its patches."""
        B = memory.picture_BS.shape[0]
        picture_RS = memory.picture_BS.repeat_interleave(tokens_R.shape[0] // B, 0)
        hidden_R1S, sentinel_R1S, state = self._run(tokens_R[:, None], picture_RS, state)
        hidden_BKS, sentinel_BKS = (
            hidden_R1S.view(B, -1, self.config.width),
            sentinel_R1S.view(B, -1, self.config.width),
        )
        context_BKS, attention_BKN, sentinel_BK = self._look(memory, hidden_BKS, sentinel_BKS)
        logits_RV = self._logits((context_BKS + hidden_BKS).flatten(0, 1))
        if not trace:
            return logits_RV, state, None
        return (
            logits_RV,
            state,
            Trace(
                attention_BTN=attention_BKN.flatten(0, 1).unsqueeze(1),
                sentinel_BT=sentinel_BK.flatten()[:, None],
            ),
        )

    def _run(
        self, tokens_RT: Tensor, picture_RS: Tensor, state: LstmState
    ) -> tuple[Tensor, Tensor, LstmState]:
        """Returns the states and sentinels (R, T, S) of the words, and the last state."""
        words_RTE = self.word_dropout(self.embedding(tokens_RT))
        inputs_RTX = torch.cat([words_RTE, picture_RS[:, None].expand(-1, tokens_RT.shape[1], -1)], dim=2)
        hiddens_RTS, cells_RTS, last = lstm_sequence(inputs_RTX, state, self.recurrence)
        previous_RTS = torch.cat([state.hidden_RS[:, None], hiddens_RTS[:, :-1]], dim=1)
        return hiddens_RTS, self.sentinel(inputs_RTX, previous_RTS, cells_RTS), last

    def _look(
        self, memory: AdaptiveMemory, hidden_BKS: Tensor, sentinel_BKS: Tensor
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Attends for K words or beams of each picture.

        Returns the contexts (B, K, S), the weights of the patches (B, K, N) and of the sentinel (B, K).
        """
        query_BKA = self.query(hidden_BKS)
        scores_BKN = tanh_scores(memory.keys_BNA, query_BKA, self.score.weight[0])
        if memory.mask_BN is not None:
            scores_BKN = scores_BKN.masked_fill(~memory.mask_BN[:, None], -torch.inf)
        sentinel_score_BK1 = self.score((self.sentinel_key(sentinel_BKS) + query_BKA).tanh())
        shares_BKN, sentinel_BK1 = (
            torch.cat([scores_BKN, sentinel_score_BK1], dim=2)
            .softmax(dim=2)
            .split([scores_BKN.shape[2], 1], dim=2)
        )
        return (
            shares_BKN @ memory.patches_BNS + sentinel_BK1 * sentinel_BKS,
            shares_BKN,
            sentinel_BK1.squeeze(2),
        )

    def _logits(self, summed_PS: Tensor) -> Tensor:
        return self.words(self.dropout(summed_PS))
