import pytest
import torch

from patchword.layers.dropout import drawn_probability, kept
from patchword.layers.transformer import add_dropped, relu_dropped_


@pytest.mark.parametrize("p", [0.0, 0.1, 0.3, 0.5, 0.999])
def test_as_many_are_kept_as_asked_for(p):
    torch.manual_seed(0)
    mask = kept(torch.empty(1001, 1003), p)
    assert mask.shape == (1001, 1003) and mask.dtype == torch.bool
    assert abs(mask.float().mean().item() - (1 - p)) < 4 * (p * (1 - p) / mask.numel()) ** 0.5 + 1e-5
    assert abs(drawn_probability(p) - p) <= 2**-17
    if 0 < p < 1:  # each of the four decisions of one random number, and none tells of another
        shares = mask.flatten()[:1_004_000].float().view(-1, 4)
        assert (shares.mean(0) - (1 - p)).abs().max() < 5e-3
        assert (shares[:, :3] * shares[:, 1:] - shares[:, :3].mean(0) * shares[:, 1:].mean(0)).mean(
            0
        ).abs().max() < 5e-3


def test_the_noise_follows_the_seed():
    torch.manual_seed(1)
    first = kept(torch.empty(7, 5), 0.5)
    torch.manual_seed(1)
    assert torch.equal(first, kept(torch.empty(7, 5), 0.5))
    assert not torch.equal(first, kept(torch.empty(7, 5), 0.5))


@pytest.mark.parametrize("p", [0.1, 0.4])
def test_dropout_keeps_the_mean_and_gradients_pass_where_values_do(p):
    torch.manual_seed(2)
    x_BTC, part_BTC = torch.zeros(200, 30, 40), torch.ones(200, 30, 40, requires_grad=True)
    summed_BTC = add_dropped(x_BTC, part_BTC, p, training=True)
    assert abs(summed_BTC.mean().item() - 1) < 0.01
    summed_BTC.sum().backward()
    torch.testing.assert_close(part_BTC.grad, summed_BTC.detach())
    rectified_BTC = relu_dropped_(torch.full((200, 30, 40), 2.0), p, training=True)
    assert abs(rectified_BTC.mean().item() - 2) < 0.02
