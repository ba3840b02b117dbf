"""Recurrent cells with one interface: LSTM, GRU and plain RNN, and an LSTM that exposes its memory cells.

    LSTM    i, f, o = sigmoid(.)   g = tanh(.)   c_t = f c_{t-1} + i g   h_t = o tanh(c_t)
            gates in the order i, f, g, o

Shape legend: B (or R) rows, T words, E width of the inputs, S width of the state, G = 4 S gates.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor, nn

from patchword.layers.linear import linear


class LstmState(NamedTuple):
    """The state of an LSTM between two words: hidden part and cell."""

    hidden_RS: Tensor
    cell_RS: Tensor


class HiddenState(NamedTuple):
    """The state of a GRU or a plain RNN between two words."""

    hidden_RS: Tensor


class Lstm(nn.Module):
    """torch's LSTM layer over a batch of sequences, with its state as a value."""

    def __init__(self, input_width: int, width: int) -> None:
        super().__init__()
        self.layer = nn.LSTM(input_width, width, batch_first=True)

    def begin(self, vector_RS: Tensor) -> LstmState:
        """Returns the state whose hidden part and cell are both `vector_RS`."""
        return LstmState(vector_RS, vector_RS)

    def forward(self, inputs_RTE: Tensor, state: LstmState) -> tuple[Tensor, LstmState]:
        """Returns the hidden part of every word, (R, T, S), and the last state."""
        outputs_RTS, (hidden_1RS, cell_1RS) = self.layer(
            inputs_RTE, (state.hidden_RS[None], state.cell_RS[None])
        )
        return outputs_RTS, LstmState(hidden_1RS[0], cell_1RS[0])


class _WithoutCell(nn.Module):
    """Base of GRU and RNN, whose hidden part is the whole state."""

    layer: nn.GRU | nn.RNN

    def begin(self, vector_RS: Tensor) -> HiddenState:
        return HiddenState(vector_RS)

    def forward(self, inputs_RTE: Tensor, state: HiddenState) -> tuple[Tensor, HiddenState]:
        outputs_RTS, hidden_1RS = self.layer(inputs_RTE, state.hidden_RS[None])
        return outputs_RTS, HiddenState(hidden_1RS[0])


class Gru(_WithoutCell):
    """One layer of gated recurrent units, with the interface of `Lstm`."""

    def __init__(self, input_width: int, width: int) -> None:
        super().__init__()
        self.layer = nn.GRU(input_width, width, batch_first=True)


class Rnn(_WithoutCell):
    """The plain recurrent network, h_t = tanh(W x_t + U h_{t-1} + b), with the interface of `Lstm`."""

    def __init__(self, input_width: int, width: int) -> None:
        super().__init__()
        self.layer = nn.RNN(input_width, width, batch_first=True)


def lstm_update(gates_RG: Tensor, cell_RS: Tensor) -> LstmState:
    """Returns the state after one word from the sum of all inputs to the gates, (R, 4 S)."""
    entry_RS, keep_RS, new_RS, out_RS = gates_RG.chunk(4, dim=-1)
    cell_RS = keep_RS.sigmoid() * cell_RS + entry_RS.sigmoid() * new_RS.tanh()
    return LstmState(out_RS.sigmoid() * cell_RS.tanh(), cell_RS)


def lstm_sequence(
    inputs_RTE: Tensor, state: LstmState, cell: nn.LSTMCell
) -> tuple[Tensor, Tensor, LstmState]:
    """Returns hidden parts and memory cells of every word, both (R, T, S), and the last state.

    A visual sentinel needs the memory cells, which torch's LSTM layer does not return. The inputs of all
    words are projected in one product.
    """
    gates_RTG = linear(inputs_RTE, cell.weight_ih, cell.bias_ih + cell.bias_hh)
    hiddens, cells = [], []
    for gates_RG in gates_RTG.unbind(dim=1):
        state = lstm_update(torch.addmm(gates_RG, state.hidden_RS, cell.weight_hh.T), state.cell_RS)
        hiddens.append(state.hidden_RS)
        cells.append(state.cell_RS)
    return torch.stack(hiddens, dim=1), torch.stack(cells, dim=1), state
