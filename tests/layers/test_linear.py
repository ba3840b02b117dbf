"""The linear layer that chooses its library: the same function as torch's, forwards, backwards and on every
layout.
"""

import pytest
import torch
import torch.nn.functional as F

from patchword.layers import linear as linear_module
from patchword.layers.dropout import kept
from patchword.layers.linear import Linear, linear
from patchword.layers.transformer import FeedForward

WIDE = (96, 128, 160)  # rows, inputs, outputs: enough for the library's call


@pytest.fixture(params=[True, False], ids=["onednn", "torch"])
def chosen(request, monkeypatch):
    """Both choices on every machine: which of them is faster is a matter of the processor, what they compute
    is not.
    """
    monkeypatch.setattr(linear_module, "mkl_is_slow", lambda: request.param)
    return request.param


def _layouts(rows: int, width: int) -> dict[str, torch.Tensor]:
    return {
        "dense": torch.randn(rows, width),
        "transposed": torch.randn(width, rows).T,
        "columns of a wider one": torch.randn(rows, 3 * width)[:, width : 2 * width],
        "every other row": torch.randn(2 * rows, width)[::2],
        "one row for all": torch.randn(1, width).expand(rows, width),
        "three axes": torch.randn(4, rows // 4, width),
        "three axes, turned": torch.randn(rows // 4, 4, width).transpose(0, 1),
    }


@pytest.mark.parametrize("layout", _layouts(4, 1))
@pytest.mark.parametrize("with_bias", [True, False])
def test_values_and_gradients_are_those_of_torch(chosen, layout, with_bias):
    torch.manual_seed(0)
    rows, width, outputs = WIDE
    inputs, weight_OI = (
        _layouts(rows, width)[layout].requires_grad_(),
        torch.randn(outputs, width, requires_grad=True),
    )
    bias_O = torch.randn(outputs, requires_grad=True) if with_bias else None
    wanted = [x for x in (inputs, weight_OI, bias_O) if x is not None]
    made, expected = linear(inputs, weight_OI, bias_O), F.linear(inputs, weight_OI, bias_O)
    slope = torch.randn_like(expected)
    torch.testing.assert_close(made, expected, rtol=1e-5, atol=1e-4)
    for ours, theirs in zip(
        torch.autograd.grad(made, wanted, slope), torch.autograd.grad(expected, wanted, slope), strict=True
    ):
        torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=1e-4)


def test_frozen_parts_get_no_gradient(chosen):
    rows, width, outputs = WIDE
    layer = Linear(width, outputs)
    layer.weight.requires_grad_(False)
    layer(torch.randn(rows, width)).sum().backward()
    assert layer.weight.grad is None
    torch.testing.assert_close(layer.bias.grad, torch.full((outputs,), float(rows)))


def test_autocast_keeps_its_precision(chosen):
    rows, width, outputs = WIDE
    with torch.autocast("cpu", torch.bfloat16):
        assert Linear(width, outputs)(torch.randn(rows, width)).dtype == torch.bfloat16


def test_a_part_of_a_weight_multiplies_like_its_copy(chosen):
    rows, width, outputs = WIDE
    inputs_RI, weight_OI = torch.randn(rows, width), torch.randn(outputs, 2 * width)
    torch.testing.assert_close(
        linear(inputs_RI, weight_OI[:, width:]), inputs_RI @ weight_OI[:, width:].T, rtol=1e-5, atol=1e-4
    )


def test_the_feed_forward_part_drops_and_rectifies_as_its_equation_says():
    torch.manual_seed(0)
    layer, x_BTC = FeedForward(16, 64, dropout=0.5).train(), torch.randn(2, 5, 16)
    slope_BTC = torch.randn_like(x_BTC)
    parameters = list(layer.parameters())

    torch.manual_seed(1)
    made = torch.autograd.grad((layer(x_BTC) * slope_BTC).sum(), parameters)

    torch.manual_seed(1)
    hidden_BTC = layer.expand(x_BTC).relu()
    hidden_BTC = hidden_BTC * kept(hidden_BTC, 0.5) * 2
    part_BTC = layer.contract(hidden_BTC)
    expected_BTC = layer.norm(x_BTC + part_BTC * kept(part_BTC, 0.5) * 2)
    for ours, theirs in zip(
        made, torch.autograd.grad((expected_BTC * slope_BTC).sum(), parameters), strict=True
    ):
        torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=1e-6)
