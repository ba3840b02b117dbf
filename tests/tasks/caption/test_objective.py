"""What captioners minimise, on a model small enough to look into."""

import pytest
import torch

from patchword.composed import CaptionModel
from patchword.data.captions import CaptionBatch, Inputs
from patchword.ids import SpecialIds
from patchword.models.captioners.show_tell import ShowTellConfig
from patchword.tasks.caption.objective import (
    CrossEntropy,
    CrossEntropySettings,
    SelfCritical,
    SelfCriticalSettings,
    scheduled,
)
from patchword.towers.settings import ConvolutionalConfig
from patchword.train.step import Shares
from patchword.types import VisualFeatures

SPECIAL = SpecialIds(pad=0, start=8, end=9, unknown=7)
TOWER = ConvolutionalConfig(stem=4, widths=(6,), blocks=(0,), size=16)


@pytest.fixture
def model():
    torch.manual_seed(0)
    return CaptionModel.build(TOWER, ShowTellConfig(width=12, dropout=0.0), vocabulary_size=10)


@pytest.fixture
def batch():
    tokens_RT = torch.tensor([[8, 1, 2, 9, 0], [8, 3, 4, 5, 9], [8, 6, 9, 0, 0]])
    features = VisualFeatures(grid_BNC=torch.randn(2, 4, 6, generator=torch.Generator().manual_seed(1)))
    return CaptionBatch(
        (11, 12), Inputs(features=features), tokens_RT, torch.tensor([4, 5, 3]), torch.tensor([0, 0, 1])
    )


def test_cross_entropy_is_the_mean_over_words(model, batch):
    """Three captions of 3, 4 and 2 targets: the loss is the sum of their -log p, divided by nine."""
    model.eval()
    named = CrossEntropy(model, CrossEntropySettings(), SPECIAL, False)(batch, Shares(9, 2, 0.0))
    memory = model.captioner.encode(model.features(batch.inputs))
    total = 0.0
    for row, (picture, length) in enumerate([(0, 4), (0, 5), (1, 3)]):
        own = type(memory)(*(part[picture : picture + 1] for part in memory))
        logits_1TV = model.captioner.decode(
            batch.tokens_RT[row : row + 1, : length - 1], torch.tensor([length - 1]), own
        ).logits_BTV
        total -= logits_1TV.log_softmax(-1)[0].gather(1, batch.tokens_RT[row, 1:length, None]).sum().item()
    assert named["loss"].item() == pytest.approx(total / 9, abs=1e-6)


def rewarded(model, batch, reward, **settings):
    torch.manual_seed(5)
    named = SelfCritical(model, SelfCriticalSettings(max_length=6, **settings), SPECIAL, reward)(
        batch, Shares(9, 2, 0.0)
    )
    named["loss"].backward()
    return named


@pytest.mark.parametrize("baseline", ["mean_of_others", "beam", "greedy"])
def test_equal_rewards_teach_nothing(model, batch, baseline):
    named = rewarded(
        model, batch, lambda captions, pictures: [0.5] * len(captions), baseline=baseline, samples=3
    )
    assert named["reward"].item() == pytest.approx(0.5)
    assert all(parameter.grad is None or parameter.grad.abs().max() == 0 for parameter in model.parameters())


def test_baseline_is_the_mean_of_the_others(model, batch):
    objective = SelfCritical(model, SelfCriticalSettings(samples=3), SPECIAL, lambda captions, pictures: [])
    baseline_R = objective._baseline(
        torch.tensor([1.0, 2.0, 3.0, 4.0, 4.0, 4.0]), batch.inputs.features, batch
    )
    assert baseline_R.tolist() == pytest.approx([2.5, 2.0, 1.5, 4.0, 4.0, 4.0])


def test_end_is_taught_and_what_is_never_said_is_not(model, batch):
    """The end token gets a gradient; padding, start and unknown, which decoding forbids, get none, so that
    none can grow in their shade.
    """
    rewarded(
        model, batch, lambda captions, pictures: [float(len(caption)) for caption in captions], samples=4
    )
    per_word = model.captioner.words.weight.grad.abs().sum(1)
    assert per_word[SPECIAL.end] > 0
    assert per_word[[SPECIAL.pad, SPECIAL.start, SPECIAL.unknown]].tolist() == [0.0, 0.0, 0.0]


def test_reward_raises_what_is_rewarded(model, batch):
    """Captions are rewarded for the word 3: after some steps it is said more often."""
    optimiser = torch.optim.Adam(model.captioner.parameters(), lr=1e-2)

    def share_of_threes(captions, pictures):
        return [sum(token == 3 for token in caption) / len(caption) for caption in captions]

    objective = SelfCritical(model, SelfCriticalSettings(max_length=6), SPECIAL, share_of_threes)
    torch.manual_seed(0)
    rewards = []
    for _ in range(60):
        named = objective(batch, Shares(9, 2, 0.0))
        optimiser.zero_grad()
        named["loss"].backward()
        optimiser.step()
        rewards.append(named["reward"].item())
    assert sum(rewards[-10:]) > 3 * sum(rewards[:10])


def test_weights_follow_their_schedule():
    assert scheduled(0.25, 0.9) == 0.25
    assert scheduled((0.0, 0.5), 0.5) == pytest.approx(0.25)
