"""The running average of weights: by hand, and carried over a resumed run."""

import pytest
import torch
from torch import nn

from patchword.train.average import Average


def test_the_average_by_hand():
    """The first steps keep (1 + n) / (10 + n) of it, later ones the decay; buffers are copied."""
    model = nn.BatchNorm1d(1)
    nn.init.constant_(model.weight, 1.0)
    average = Average(model, 0.15)
    for step, expected in ((0, 1 + 0.9 * 4), (1, None)):
        nn.init.constant_(model.weight, 5.0)
        model.running_mean.fill_(7.0 + step)
        before = average.model.weight.item()
        average.update(model, step)
        keep = min(0.15, (1 + step) / (10 + step))
        assert average.model.weight.item() == pytest.approx(keep * before + (1 - keep) * 5)
        assert expected is None or average.model.weight.item() == pytest.approx(expected)
        assert average.model.running_mean.item() == 7 + step
    assert not average.model.training and not average.model.weight.requires_grad


def test_a_resumed_run_gets_the_trained_weights_and_not_the_averaged_ones():
    model, other = nn.Linear(2, 2), nn.Linear(2, 2)
    average = Average(model, 0.9)
    with torch.no_grad():
        model.weight.add_(1)
    state = {name: tensor.clone() for name, tensor in average.state(model).items()}
    assert set(state) == {"trained.weight", "trained.bias"}
    average.load_state(other, state)
    assert torch.equal(other.weight, model.weight) and not torch.equal(other.weight, average.model.weight)
