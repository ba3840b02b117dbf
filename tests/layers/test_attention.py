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
    _, weights = attend(
        torch.ones(1, 1, 1, 2), keys, keys, hide(torch.tensor([True, False, True])), want_weights=True
    )
    assert_close(weights.flatten(), torch.tensor([0.5, 0.0, 0.5]))


def test_scores_are_divided_by_the_root_of_the_width():
    keys = torch.tensor([[2.0, 0, 0, 0], [0, 0, 0, 0]])[None, None]
    _, weights = attend(torch.tensor([1.0, 0, 0, 0])[None, None, None], keys, keys, want_weights=True)
    assert_close(weights.flatten(), torch.tensor([1.0, 0.0]).softmax(0))


def test_bf16_agrees_with_fp32_within_its_precision():
    """In bf16 a CPU takes another path; values and gradients are those of the fused kernel up to bf16's eight
    bits.
    """
    torch.manual_seed(0)
    inputs = [torch.randn(2, 3, length, 8) for length in (4, 5, 5)]
    results = []
    for dtype in (torch.float32, torch.bfloat16):
        queries, keys, values = (tensor.clone().to(dtype).detach().requires_grad_() for tensor in inputs)
        mixed, _ = attend(queries, keys, values)
        mixed.float().square().sum().backward()
        results.append((mixed.float(), keys.grad.float()))
    for exact, rounded in zip(*results, strict=True):
        assert (rounded - exact).norm() < 0.02 * exact.norm()
