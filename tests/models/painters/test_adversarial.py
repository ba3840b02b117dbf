"""Exact properties of the painters that are taught by an adversary."""

import pytest
import torch
import torch.nn.functional as F
from torch.distributions import Normal, kl_divergence

from patchword.data.captions import CaptionBatch, Inputs
from patchword.ids import SpecialIds
from patchword.layers.gaussian import divergence
from patchword.models.painters.attn_gan import AttnGan, AttnGanConfig, word_region_weights, word_scores
from patchword.models.painters.conditional_gan import ConditionalGan, ConditionalGanConfig
from patchword.models.painters.df_gan import DfGan, DfGanConfig, gradient_penalty
from patchword.models.painters.stack_gan import StackGan, StackGanConfig
from patchword.tasks.paint.attentive import AttnGanLoss
from patchword.tasks.paint.composed import PaintModel
from patchword.tasks.paint.conditional import ConditionalGanLoss
from patchword.tasks.paint.deep_fusion import DfGanLoss
from patchword.tasks.paint.stacked import StackGanLoss
from patchword.train.step import Shares
from patchword.types import TextFeatures

SPECIAL = SpecialIds(pad=0, start=1, end=2, unknown=3)
SHARES = Shares(8, 4, 0.5)


class Words(torch.nn.Module):
    """A frozen table of words as a text tower."""

    width = 12

    def __init__(self):
        super().__init__()
        self.table = torch.nn.Embedding(20, 12).requires_grad_(False)

    def forward(self, ids_BL, mask_BL):
        return TextFeatures(self.table(ids_BL), mask_BL=mask_BL)


def batch_of(size):
    tokens = torch.tensor([[1, 5, 6, 2, 0], [1, 7, 8, 9, 2], [1, 4, 2, 0, 0], [1, 11, 12, 2, 0]])
    lengths, rows = (tokens != 0).sum(1), torch.arange(4)
    return CaptionBatch(
        tuple("abcd"), Inputs(pixels_B3HW=torch.rand(4, 3, size, size) * 2 - 1), tokens, lengths, rows
    )


def test_a_fresh_df_gan_paints_the_same_for_every_text():
    torch.manual_seed(0)
    model = DfGan(DfGanConfig(size=32, width=4, judge_width=4), 12)
    # The text enters by the affine layers alone, whose scale is 1 and shift 0 at first, whatever it says.
    for generator_input in (torch.randn(2, 100), torch.zeros(2, 100)):
        one = model.paint(generator_input, torch.randn(2, 12))
        other = model.paint(generator_input, 100 * torch.randn(2, 12))
        assert torch.equal(one, other)
    with torch.no_grad():
        model.generator.blocks[0].fuse_in.first.shift[2].weight.normal_()
    assert not torch.equal(model.paint(generator_input, torch.randn(2, 12)), other)


def test_the_gradient_penalty_is_the_norm_that_finite_differences_find():
    torch.manual_seed(0)
    judge = DfGan(DfGanConfig(size=16, width=4, judge_width=4), 5).double().discriminator
    with torch.no_grad():
        for block in judge.blocks:
            block.weight.fill_(0.7)
    pictures, sentence = torch.randn(1, 3, 16, 16).double(), torch.randn(1, 5).double()
    direction = torch.randn(1, 3, 16, 16).double(), torch.randn(1, 5).double()
    step = 1e-6

    def score(by):
        return judge(pictures + by * direction[0], sentence + by * direction[1])

    with torch.no_grad():
        slope = float((score(step) - score(-step)) / (2 * step))
    inputs = pictures.clone().requires_grad_(), sentence.clone().requires_grad_()
    gradients = torch.autograd.grad(judge(*inputs), inputs)
    assert slope == pytest.approx(
        sum(float((g * d).sum()) for g, d in zip(gradients, direction, strict=True)), rel=1e-5
    )
    norm = torch.cat([g.flatten() for g in gradients]).norm()
    judge = judge.float()
    found = gradient_penalty(judge, pictures.float(), sentence.float(), 3.0)
    assert float(found.detach()) == pytest.approx(float(norm**3), rel=1e-4)
    # It can be trained: the penalty has a gradient by the weights.
    found.sum().backward()
    assert judge.joint_in.weight.grad.abs().sum() > 0


@pytest.mark.parametrize("matching_aware", [True, False])
def test_a_wrong_pair_teaches_the_discriminator_only_where_it_is_aware_of_matching(matching_aware):
    torch.manual_seed(0)
    config = ConditionalGanConfig(
        size=16, width=4, judge_width=4, matching_aware=matching_aware, interpolated=False
    )
    loss = ConditionalGanLoss(PaintModel(Words(), ConditionalGan(config, 12)), 0)
    seen = []
    judge = loss.model.painter.discriminator
    judge.register_forward_hook(lambda module, given, out: seen.append(given))
    batch = batch_of(16)
    loss(batch, SHARES)
    own = loss.model.tell(batch.tokens_RT, 0)
    real = [given for given in seen if torch.equal(given[0], batch.inputs.pixels_B3HW)]
    assert len(real) == (2 if matching_aware else 1)
    if matching_aware:
        sentences = {tuple(given[1].flatten().tolist()) for given in real}
        mean = (own.text.tokens_BLC * own.mask_BL[..., None]).sum(1) / own.mask_BL.sum(1, keepdim=True)
        rolled = tuple(mean.roll(1, 0).flatten().tolist())
        assert any(torch.allclose(torch.tensor(one), torch.tensor(rolled)) for one in sentences)


def test_interpolated_sentences_are_halfway_and_only_the_generator_learns_from_them():
    torch.manual_seed(0)
    config = ConditionalGanConfig(size=16, width=4, judge_width=4)
    loss = ConditionalGanLoss(PaintModel(Words(), ConditionalGan(config, 12)), 0)
    painted = []
    loss.model.painter.generator.register_forward_hook(lambda module, given, out: painted.append(given[1]))
    loss(batch_of(16), SHARES)
    (asked,) = painted
    assert len(asked) == 6
    assert torch.allclose(asked[4:], (asked[:2] + asked[2:4]) / 2)
    loss.eval()
    loss(batch_of(16), SHARES)
    assert len(painted[1]) == 4


def losses():
    words = Words()
    yield (
        "conditional",
        ConditionalGanLoss(
            PaintModel(words, ConditionalGan(ConditionalGanConfig(size=16, width=4, judge_width=4), 12)), 0
        ),
        16,
        "painter.generator",
        "painter.discriminator",
    )
    yield (
        "df",
        DfGanLoss(PaintModel(words, DfGan(DfGanConfig(size=16, width=4, judge_width=4), 12)), 0),
        16,
        "painter.generator",
        "painter.discriminator",
    )
    stack = StackGanConfig(size=16, first_size=8, width=4, judge_width=4)
    for second in (False, True):
        part = "painter.second" if second else "painter.first"
        yield (
            f"stack {part}",
            StackGanLoss(PaintModel(words, StackGan(stack, 12)), 0, second),
            16,
            f"{part}.generator",
            f"{part}.discriminator",
        )
    yield (
        "attn",
        AttnGanLoss(
            PaintModel(words, AttnGan(AttnGanConfig(size=16, width=4, judge_width=4, region_width=4), 12)), 0
        ),
        16,
        "painter.generator",
        "painter.discriminator",
    )


@pytest.mark.parametrize("case", list(losses()), ids=lambda case: case[0])
def test_each_side_gets_its_own_gradient_and_nothing_else_gets_any(case):
    _, loss, size, generator, judge = case
    torch.manual_seed(0)
    for name, parameter in loss.model.named_parameters():
        if name.endswith("weight") and parameter.ndim > 1 and not parameter.any():
            torch.nn.init.normal_(parameter, std=0.1)  # affine layers begin at zero
    found = loss(batch_of(size), SHARES)
    names = dict(loss.model.named_parameters())
    for side, key in ((generator, "generator"), (judge, "discriminator")):
        loss.model.zero_grad()
        found[key].backward(retain_graph=True)
        reached = {name for name, one in names.items() if one.grad is not None and one.grad.abs().sum() > 0}
        assert reached and all(name.startswith(side + ".") for name in reached), (key, sorted(reached)[:3])
    assert torch.isfinite(found["loss"])
    parts = sum(float(value.detach()) for name, value in found.items() if name != "loss")
    assert float(found["loss"].detach()) == pytest.approx(parts, rel=1e-5)


def test_the_divergence_is_that_of_the_textbook():
    mean, log_variance = torch.randn(3, 7), torch.randn(3, 7)
    expected = kl_divergence(Normal(mean, (log_variance / 2).exp()), Normal(0.0, 1.0)).sum(1)
    assert torch.allclose(divergence(mean, log_variance), expected, atol=1e-5)


@pytest.mark.parametrize(("size", "first"), [(16, 8), (32, 8), (64, 16)])
def test_the_second_stage_enlarges_and_leaves_the_first_alone(size, first):
    model = StackGan(StackGanConfig(size=size, first_size=first, width=4, judge_width=4), 12)
    assert model.paint(torch.randn(2, 100), torch.randn(2, 12)).shape == (2, 3, size, size)
    assert model.first.generator(torch.randn(2, 100), torch.randn(2, 12))[0].shape == (2, 3, first, first)


def test_both_softmaxes_of_matching_stand_on_their_axes():
    torch.manual_seed(0)
    regions, words = torch.randn(3, 9, 6), torch.randn(4, 5, 6)
    mask = torch.ones(4, 5, dtype=torch.bool)
    mask[1, 3:] = False
    over_words, over_regions = word_region_weights(regions, words, mask, 4.0)
    assert torch.allclose(over_words.sum(2), torch.ones(3, 4, 9))
    assert torch.allclose(over_regions.sum(3), torch.ones(3, 4, 5))
    assert torch.equal(over_words[:, 1, 3:], torch.zeros(3, 2, 9))
    # Padding changes nothing.
    alone = word_scores(regions, words[1:2, :3], mask[1:2, :3], 4.0, 5.0)
    assert torch.allclose(word_scores(regions, words, mask, 4.0, 5.0)[:, 1:2], alone, atol=1e-6)


def test_matching_does_not_depend_on_the_order_of_the_batch_and_begins_without_knowledge():
    torch.manual_seed(0)
    matching = AttnGan(AttnGanConfig(size=16, region_width=4, words=16), 12).matching
    pictures, tokens = torch.rand(8, 3, 16, 16), torch.randn(8, 4, 12)
    words, sentence = matching.read(tokens, tokens.mean(1))
    mask, same = torch.ones(8, 4, dtype=torch.bool), torch.eye(8, dtype=torch.bool)
    loss = matching.loss(pictures, words, sentence, mask, same)
    order = torch.randperm(8)
    again = matching.loss(pictures[order], words[order], sentence[order], mask, same)
    assert torch.allclose(loss, again, rtol=1e-5)
    # Pictures that all look the same tell nothing: each of the four terms is at least ln 8.
    blind = matching.loss(pictures[:1].expand(8, -1, -1, -1), words, sentence, mask, same)
    assert float(blind.detach()) >= 4 * float(torch.tensor(8.0).log()) - 1e-3
    # Texts of the same words are no negatives: with all of them equal, nothing can be wrong.
    alike = torch.ones(8, 8, dtype=torch.bool)
    assert float(matching.loss(pictures, words, sentence, mask, alike).detach()) == pytest.approx(
        0.0, abs=1e-6
    )


def test_cells_read_words_and_never_padding():
    torch.manual_seed(0)
    model = AttnGan(AttnGanConfig(size=16, width=4, judge_width=4), 12).eval()
    mask = torch.tensor([[True, True, True, False, False]])
    tokens, noise = torch.randn(1, 5, 12), torch.randn(1, 100)
    painted = model.paint(noise, tokens, tokens[:, :3].mean(1), mask)
    assert torch.equal(painted.weights[0][..., 3:], torch.zeros(1, 64, 2))
    assert torch.allclose(painted.weights[0].sum(-1), torch.ones(1, 64))
    changed = F.pad(tokens[:, :3], (0, 0, 0, 2), value=9.0)
    again = model.paint(noise, changed, tokens[:, :3].mean(1), mask)
    assert torch.equal(painted.pictures[1], again.pictures[1])


@pytest.mark.parametrize(
    ("config", "given", "message"),
    [
        (ConditionalGanConfig, {"size": 24}, "power of two"),
        (DfGanConfig, {"size": 48}, "power of two"),
        (StackGanConfig, {"size": 16, "first_size": 16}, "the second stage must be larger"),
        (AttnGanConfig, {"size": 16, "stages": 3}, "would have 4 pixels"),
    ],
)
def test_sizes_that_cannot_be_are_refused(config, given, message):
    with pytest.raises(ValueError, match=message):
        config(**given)
