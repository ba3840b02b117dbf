import torch
from torch.testing import assert_close

from patchword.layers.attention import attend, hide


def test_with_and_without_weights_agree():
    torch.manual_seed(0)
    queries, keys, values = torch.randn(2, 3, 4, 8), torch.randn(2, 3, 5, 8), torch.randn(2, 3, 5, 6)
    mask_BN = torch.tensor([[True] * 5, [True, True, False, False, False]])
    for bias in (None, hide(mask_BN)[:, None, None], torch.randn(4, 5)):
        mixed, weights = attend(queries, keys, values, bias, want_weights=True)
        fused, none = attend(queries, keys, values, bias)
        assert_close(fused, mixed)
        assert none is None
        assert_close(weights.sum(-1), torch.ones(2, 3, 4))


def test_hidden_keys_weigh_nothing():
    keys = torch.ones(1, 1, 3, 2)
    _, weights = attend(torch.ones(1, 1, 1, 2), keys, keys, hide(torch.tensor([True, False, True])), want_weights=True)
    assert_close(weights.flatten(), torch.tensor([0.5, 0.0, 0.5]))


def test_scores_are_divided_by_the_root_of_the_width():
    keys = torch.tensor([[2.0, 0, 0, 0], [0, 0, 0, 0]])[None, None]
    _, weights = attend(torch.tensor([1.0, 0, 0, 0])[None, None, None], keys, keys, want_weights=True)
    assert_close(weights.flatten(), torch.tensor([1.0, 0.0]).softmax(0))
