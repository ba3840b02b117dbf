"""Show, Attend and Tell: a recurrent captioner that attends to a weighted mean of patches per word.

Xu, Ba, Kiros, Cho, Courville, Salakhutdinov, Zemel, Bengio: Show, Attend and Tell. ICML 2015 (soft attention,
section 4.2).

    h_0, c_0 = f_init(mean of the annotations a_i)
    e_i      = w^T f(W_a a_i + W_h h_{t-1})             alpha = softmax(e)                   (equations 4, 5)
    z_t      = beta_t * sum_i alpha_i a_i               beta_t = sigmoid(f_beta(h_{t-1}))    (section 4.2.1)
    h_t, c_t = LSTM([E y_{t-1}; z_t], h_{t-1}, c_{t-1})                                      (equations 1-3)
    p(y_t)   = softmax(L_o(E y_{t-1} + L_h h_t + L_z z_t))                                   (equation 7)

This is the paper's version. The widely taught PyTorch version differs: beta_t is a vector with one gate per
channel, f is the rectifier, the initial states are single linear maps, and the words are a single linear map
of h_t. Both are here; each choice is a field of the config.

Shape legend: that of `patchword.types`, and A width of the attention, S width of the LSTM, E width of a word,
R rows (B, or B*K beams), n rows that have a word at a step, P packed (caption, word) pairs, G the LSTM's four
gates (4 S), Y query, gate and G side by side.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal, NamedTuple

import torch
from pydantic import BaseModel, ConfigDict, Field
from torch import Tensor, nn

from patchword.layers.additive import AdditiveAttention
from patchword.layers.features import grid_of, masked_mean
from patchword.layers.linear import Linear, linear
from patchword.layers.over_time import OverTime
from patchword.layers.packing import pack, unpack
from patchword.layers.recurrent import LstmState, lstm_update
from patchword.types import Decoded, Trace, VisualFeatures


class ShowAttendTellConfig(BaseModel):
    """Sizes and variants of the model."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    kind: Literal["show_attend_tell"] = Field("show_attend_tell", description="Name of this captioner.")
    word_width: int = Field(512, gt=0, le=65536, description="Width of a word embedding.")
    width: int = Field(512, gt=0, le=65536, description="Width of the LSTM.")
    attention_width: int = Field(
        512, gt=0, le=65536, description="Width of the space in which patches and words are compared."
    )
    scoring: Literal["tanh", "relu"] = Field(
        "tanh", description="f of the attention score: tanh (paper) or relu (tutorial)."
    )
    gate: Literal["scalar", "vector"] = Field(
        "scalar", description="Gate of the context: one number (paper), one per channel (tutorial)."
    )
    output: Literal["deep", "linear"] = Field(
        "deep", description="Words from word, state, context (paper) or state only (tutorial)."
    )
    initial: Literal["mlp", "linear"] = Field(
        "mlp", description="Initial states from the mean patch: two-layer MLPs (paper) or linear."
    )
    dropout: float = Field(0.5, ge=0, lt=1, description="Dropout before the output layer.")
    word_dropout: float = Field(0.0, ge=0, lt=1, description="Dropout of the word embeddings.")


class ShowAttendTellMemory(NamedTuple):
    """What the decoder reads of B pictures: patches, their attention keys, and the initial states."""

    grid_BNC: Tensor
    keys_BNA: Tensor
    mask_BN: Tensor | None
    hidden_BS: Tensor
    cell_BS: Tensor


class LinearOutput(nn.Module):
    """Predicts words from the state alone; the tutorial's output."""

    def __init__(self, config: ShowAttendTellConfig, feature_width: int, vocabulary_size: int) -> None:
        super().__init__()
        self.dropout = nn.Dropout(config.dropout)
        self.words = _uniform_linear(config.width, vocabulary_size)

    def forward(self, words_PE: Tensor, hidden_PS: Tensor, context_PC: Tensor) -> Tensor:
        """Returns the logits (P, V)."""
        return self.words(self.dropout(hidden_PS))


class DeepOutput(nn.Module):
    """Predicts words from the previous word, the state and the context, added as embeddings (equation 7)."""

    def __init__(self, config: ShowAttendTellConfig, feature_width: int, vocabulary_size: int) -> None:
        super().__init__()
        self.state = Linear(config.width, config.word_width)
        self.context = Linear(feature_width, config.word_width, bias=False)
        self.dropout = nn.Dropout(config.dropout)
        self.words = _uniform_linear(config.word_width, vocabulary_size)

    def forward(self, words_PE: Tensor, hidden_PS: Tensor, context_PC: Tensor) -> Tensor:
        """Returns the logits (P, V)."""
        return self.words(self.dropout(words_PE + self.state(hidden_PS) + self.context(context_PC)))


class ShowAttendTell(nn.Module):
    """A captioner (see `patchword.types.Captioner`) over grids of `feature_width` channels."""

    def __init__(self, config: ShowAttendTellConfig, feature_width: int, vocabulary_size: int) -> None:
        super().__init__()
        self.config = config
        self.feature_width = feature_width
        self.vocabulary_size = vocabulary_size
        self.embedding = nn.Embedding(vocabulary_size, config.word_width)
        nn.init.uniform_(self.embedding.weight, -0.1, 0.1)
        self.word_dropout = nn.Dropout(config.word_dropout)
        self.attention = AdditiveAttention(
            feature_width, config.width, config.attention_width, config.scoring
        )
        self.gate = Linear(config.width, {"scalar": 1, "vector": feature_width}[config.gate])
        self.recurrence = nn.LSTMCell(config.word_width + feature_width, config.width)
        initials: dict[str, Callable[[int, int], nn.Module]] = {"mlp": _two_layers, "linear": Linear}
        initial = initials[config.initial]
        self.initial_hidden = initial(feature_width, config.width)
        self.initial_cell = initial(feature_width, config.width)
        self._widths = [config.attention_width, self.gate.out_features, 4 * config.width]
        self.output = {"deep": DeepOutput, "linear": LinearOutput}[config.output](
            config, feature_width, vocabulary_size
        )

    def encode(self, features: VisualFeatures) -> ShowAttendTellMemory:
        """Returns the patches, their attention keys and the initial states.

        Raises ModelError where the features are not `feature_width` wide.
        """
        grid_BNC = grid_of(features, self.feature_width)
        mean_BC = masked_mean(grid_BNC, features.mask_BN)
        return ShowAttendTellMemory(
            grid_BNC,
            self.attention.project(grid_BNC),
            features.mask_BN,
            self.initial_hidden(mean_BC),
            self.initial_cell(mean_BC),
        )

    def decode(
        self, tokens_BT: Tensor, lengths_B: Tensor, memory: ShowAttendTellMemory, trace: bool = False
    ) -> Decoded:
        """Teacher forcing.

        Rows are processed in the order of falling length, so a caption that has ended costs nothing more.
        """
        packing = pack(lengths_B, tokens_BT.shape[1])
        if packing.order_B is not None:
            memory = ShowAttendTellMemory._make(
                None if part is None else part.index_select(0, packing.order_B) for part in memory
            )
        words_PE = self._embed(tokens_BT.flatten()[packing.places_P])
        into_words, into_context = self._input_weights()
        contexts_in = OverTime(
            into_context, linear(words_PE, into_words, self.recurrence.bias_ih + self.recurrence.bias_hh)
        )
        hidden_in = OverTime(*self._hidden_weights(contexts_in.offsets_PY))
        state = LstmState(memory.hidden_BS, memory.cell_BS)
        hiddens, contexts, attentions = [], [], []
        for offsets_nY in hidden_in.offsets_PY.split(packing.counts):
            hidden_nS, cell_nS = (part[: len(offsets_nY)] for part in state)
            query_nA, gate_nC, gates_nG = hidden_in(offsets_nY, hidden_nS).split(self._widths, dim=1)
            context_n1C, attention_n1N = self._look(memory, query_nA.unsqueeze(1), gate_nC.unsqueeze(1))
            contexts.append(context_n1C.squeeze(1))
            state = lstm_update(contexts_in(gates_nG, contexts[-1]), cell_nS)
            hiddens.append(state.hidden_RS)
            attentions.append(attention_n1N.squeeze(1))
        logits_PV = self.output(words_PE, torch.cat(hiddens), torch.cat(contexts))
        attention_BTN = unpack(torch.cat(attentions), packing) if trace else None
        return Decoded(unpack(logits_PV, packing), Trace(attention_BTN=attention_BTN) if trace else None)

    def start(self, memory: ShowAttendTellMemory, beams: int) -> LstmState:
        """Repeats the initial states of each picture for its beams."""
        return LstmState(
            memory.hidden_BS.repeat_interleave(beams, 0), memory.cell_BS.repeat_interleave(beams, 0)
        )

    def step(
        self, tokens_R: Tensor, memory: ShowAttendTellMemory, state: LstmState, trace: bool = False
    ) -> tuple[Tensor, LstmState, Trace | None]:
        """Decodes one word for every row; the beams of a picture share its keys and its grid."""
        words_RE = self._embed(tokens_R)
        into_words, into_context = self._input_weights()
        hidden_BKS = state.hidden_RS.view(memory.grid_BNC.shape[0], -1, self.config.width)
        context_BKC, attention_BKN = self._look(
            memory, self.attention.query(hidden_BKS), self.gate(hidden_BKS)
        )
        context_RC = context_BKC.flatten(0, 1)
        gates_RG = linear(words_RE, into_words, self.recurrence.bias_ih + self.recurrence.bias_hh)
        gates_RG = (
            gates_RG + linear(context_RC, into_context) + linear(state.hidden_RS, self.recurrence.weight_hh)
        )
        state = lstm_update(gates_RG, state.cell_RS)
        logits_RV = self.output(words_RE, state.hidden_RS, context_RC)
        return (
            logits_RV,
            state,
            Trace(attention_BTN=attention_BKN.flatten(0, 1).unsqueeze(1)) if trace else None,
        )

    def _embed(self, tokens: Tensor) -> Tensor:
        return self.word_dropout(self.embedding(tokens))

    def _input_weights(self) -> tuple[Tensor, Tensor]:
        """Splits the LSTM's input weights into those of the word and those of the context.

        The words of all steps are projected at once; the contexts depend on the steps before them.
        """
        weights = self.recurrence.weight_ih.split([self.config.word_width, self.feature_width], dim=1)
        return weights[0], weights[1]

    def _hidden_weights(self, gates_PG: Tensor) -> tuple[Tensor, Tensor]:
        """Returns one matrix for all products with the previous state, and the offsets of all steps.

        The products are the attention query, the gate and the LSTM's recurrent input.
        """
        weight_YS = torch.cat([self.attention.query.weight, self.gate.weight, self.recurrence.weight_hh])
        biases_Y = torch.cat([self.attention.query.bias, self.gate.bias])
        return weight_YS, torch.cat([biases_Y.expand(gates_PG.shape[0], -1), gates_PG], dim=1)

    def _look(
        self, memory: ShowAttendTellMemory, query_nKA: Tensor, gate_nKC: Tensor
    ) -> tuple[Tensor, Tensor]:
        """Gated contexts (n, K, C) and attention (n, K, N) of the first n pictures, K queries each."""
        attention_nKN = self.attention(memory.keys_BNA, query_nKA, memory.mask_BN)
        return gate_nKC.sigmoid() * (attention_nKN @ memory.grid_BNC[: query_nKA.shape[0]]), attention_nKN


def _two_layers(inputs: int, outputs: int) -> nn.Sequential:
    return nn.Sequential(Linear(inputs, outputs), nn.Tanh(), Linear(outputs, outputs))


def _uniform_linear(inputs: int, outputs: int) -> Linear:
    """A vocabulary layer with weights within +-0.1 and zero biases, so that no word is preferred at first."""
    layer = Linear(inputs, outputs)
    nn.init.uniform_(layer.weight, -0.1, 0.1)
    nn.init.zeros_(layer.bias)
    return layer
