import torch
from torch import nn
from torch.testing import assert_close

from patchword.layers.over_time import OverTime
from patchword.layers.packing import at_words, pack, unpack, valid
from patchword.layers.recurrent import LstmState, lstm_sequence


def test_the_lstm_with_visible_cells_is_torchs():
    torch.manual_seed(0)
    cell, inputs_RTE = nn.LSTMCell(3, 4), torch.randn(2, 5, 3)
    state = LstmState(torch.randn(2, 4), torch.randn(2, 4))
    hiddens_RTS, cells_RTS, last = lstm_sequence(inputs_RTE, state, cell)
    for step in range(5):
        state = LstmState(*cell(inputs_RTE[:, step], tuple(state)))
        assert_close(hiddens_RTS[:, step], state.hidden_RS)
        assert_close(cells_RTS[:, step], state.cell_RS)
    assert_close(last, state)


def test_a_weight_differentiated_once_has_the_gradient_of_the_sum_over_steps():
    torch.manual_seed(0)
    weight, start = torch.randn(3, 3, dtype=torch.float64), torch.randn(2, 3, dtype=torch.float64)
    offsets = torch.randn(4 * 2, 3, dtype=torch.float64)

    def recurrence(weight, offsets):
        over_time, x = OverTime(weight, offsets), start
        for offset in over_time.offsets_PY.split(2):
            x = over_time(offset, x).tanh()
        return x

    def plain(weight, offsets):
        x = start
        for offset in offsets.split(2):
            x = (offset + x @ weight.T).tanh()
        return x

    arguments = weight.requires_grad_(), offsets.requires_grad_()
    assert_close(recurrence(*arguments), plain(*arguments))
    for found, expected in zip(
        torch.autograd.grad(recurrence(*arguments).sum(), arguments),
        torch.autograd.grad(plain(*arguments).sum(), arguments),
        strict=True,
    ):
        assert_close(found, expected)


def test_packed_rows_go_back_to_their_places():
    packing = pack(torch.tensor([2, 3, 1]), steps=4)
    assert packing.counts == (3, 2, 1)
    assert packing.order_B.tolist() == [1, 0, 2]
    values_BTX = torch.arange(12.0).view(3, 4, 1)
    packed_PX = values_BTX.view(12, 1)[packing.places_P]
    assert packed_PX.flatten().tolist() == [4, 0, 8, 5, 1, 6]
    assert_close(unpack(packed_PX, packing), values_BTX * valid(torch.tensor([2, 3, 1]), 4)[..., None])


def test_lengths_may_stand_in_a_column():
    column = torch.tensor([[2], [3], [1]])
    assert pack(column, steps=4).counts == (3, 2, 1)
    assert torch.equal(valid(column, 4), valid(column[:, 0], 4))


def test_captions_already_in_falling_length_stay_where_they_are():
    assert pack(torch.tensor([3, 3, 1]), steps=3).order_B is None


def test_a_layer_at_words_sees_no_padding():
    seen = []

    def layer(rows_PX):
        seen.append(len(rows_PX))
        return rows_PX + 1

    found = at_words(layer, torch.zeros(2, 3, 1), valid(torch.tensor([1, 2]), 3))
    assert seen == [3] and found.flatten().tolist() == [1, 0, 0, 1, 1, 0]
