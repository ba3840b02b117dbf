import pytest
import torch
from torch.testing import assert_close

from patchword.layers import additive
from patchword.layers.additive import AdditiveAttention, relu_scores, tanh_scores

SCORES = {"relu": (relu_scores, torch.relu), "tanh": (tanh_scores, torch.tanh)}


def inputs(queries=3, dtype=torch.float64):
    torch.manual_seed(0)
    return [
        torch.randn(*shape, dtype=dtype, requires_grad=True) for shape in ((5, 4, 6), (5, queries, 6), (6,))
    ]


@pytest.mark.parametrize(
    "limit", [1, 60, 10**6], ids=["one picture at a time", "uneven pieces", "all at once"]
)
@pytest.mark.parametrize("queries", [1, 3])
@pytest.mark.parametrize("name", SCORES)
def test_scores_and_gradients_are_those_of_the_plain_formula(name, queries, limit, monkeypatch):
    monkeypatch.setattr(additive, "_CACHED_ELEMENTS", limit)
    scores, activate = SCORES[name]
    keys, query, weight = inputs(queries)
    plain = activate(keys[:, None] + query[:, :, None]) @ weight
    found = scores(keys, query, weight)
    assert_close(found, plain)
    cotangent = torch.randn_like(plain)
    for ours, expected in zip(
        torch.autograd.grad(found, [keys, query, weight], cotangent),
        torch.autograd.grad(plain, [keys, query, weight], cotangent),
        strict=True,
    ):
        assert_close(ours, expected)


def test_fewer_queries_than_pictures_leave_the_last_pictures_without_gradient():
    keys, query, weight = inputs(1)
    relu_scores(keys, query[:2], weight).sum().backward()
    assert keys.grad[:2].any() and not keys.grad[2:].any()


def test_nothing_as_large_as_the_sums_is_kept_for_the_way_back():
    keys, query, weight = inputs(1)
    kept = []
    with torch.autograd.graph.saved_tensors_hooks(
        lambda tensor: kept.append(tensor.data_ptr()) or tensor, lambda tensor: tensor
    ):
        relu_scores(keys, query, weight)
    assert set(kept) <= {keys.data_ptr(), query.data_ptr(), weight.data_ptr()}


def test_hidden_patches_weigh_nothing():
    torch.manual_seed(0)
    attention = AdditiveAttention(4, 3, 5, "tanh")
    mask_BN = torch.tensor([[True, True, False], [True, False, False]])
    weights_BKN = attention(
        attention.project(torch.randn(2, 3, 4)), attention.query(torch.randn(2, 1, 3)), mask_BN
    )
    assert_close(weights_BKN.sum(2), torch.ones(2, 1))
    assert not weights_BKN[~mask_BN[:, None]].any() and weights_BKN[1, 0, 0] == 1


def test_half_precision_keys_with_single_precision_weights():
    keys, query, weight = inputs(dtype=torch.float32)
    found = tanh_scores(keys.bfloat16(), query.bfloat16(), weight)
    assert found.dtype == torch.bfloat16
    assert_close(found.float(), torch.tanh(keys[:, None] + query[:, :, None]) @ weight, atol=0.1, rtol=0.05)
    found.sum().backward()
    assert weight.grad.dtype == torch.float32
