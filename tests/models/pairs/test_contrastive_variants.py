"""UniCL and label smoothing against InfoNCE and by hand; cached gradients against the whole batch."""

import pytest
import torch
import torch.nn.functional as F

from patchword.data.captions import CaptionBatch, Inputs
from patchword.models.pairs.two_towers import (
    TwoTowers,
    TwoTowersConfig,
    same_class,
    smoothed_softmax_loss,
    softmax_loss,
)
from patchword.tasks.retrieve.cached_gradients import cached_backward
from patchword.tasks.retrieve.objective import ContrastiveObjective
from patchword.towers.bert import BertTower
from patchword.towers.settings import BertTowerConfig, VitTowerConfig
from patchword.towers.vit import VitTower
from patchword.train.gather import Gather
from patchword.train.settings import StageSettings
from patchword.train.step import Shares, StepContext

SIZES = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 16}


@pytest.fixture
def similarity():
    return torch.randn(5, 5, generator=torch.Generator().manual_seed(0)) * 3


def test_distinct_texts_make_unicl_infonce(similarity):
    owner = torch.arange(5)
    positive = same_class(owner, torch.tensor([3, 1, 4, 15, 9]), 5)
    assert torch.equal(positive, torch.eye(5, dtype=torch.bool))
    for rows in (slice(0, 5), slice(1, 3)):
        expected = softmax_loss(similarity, owner, rows.start, rows.stop - rows.start)
        torch.testing.assert_close(smoothed_softmax_loss(similarity, positive, owner, rows), expected)


def test_smoothing_is_that_of_torch(similarity):
    owner, target = torch.arange(5), torch.arange(5)
    expected = sum(
        F.cross_entropy(scores, target, label_smoothing=0.1, reduction="sum")
        for scores in (similarity, similarity.T)
    )
    positive = same_class(owner, owner, 5)
    found = smoothed_softmax_loss(similarity, positive, owner, slice(0, 5), 0.1)
    torch.testing.assert_close(found, expected / 2)


def test_unicl_by_hand():
    """Two pairs of one class: each picture has both texts as positives, so a flat table is at its floor."""
    positive = same_class(torch.arange(2), torch.tensor([7, 7]), 2)
    assert positive.all()
    flat = torch.zeros(2, 2, requires_grad=True)
    loss = smoothed_softmax_loss(flat, positive, torch.arange(2), slice(0, 2))
    assert loss.item() == pytest.approx(2 * torch.log(torch.tensor(2.0)).item())
    loss.backward()
    assert flat.grad.abs().max() == 0, "all equal: nothing pulls one pair apart from another"
    apart = torch.tensor([[4.0, 0.0], [0.0, 4.0]], requires_grad=True)
    smoothed_softmax_loss(apart, positive, torch.arange(2), slice(0, 2)).backward()
    assert apart.grad[0, 1] < 0 < apart.grad[0, 0], "the other of the class is pulled near"


def batches(sizes):
    generator = torch.Generator().manual_seed(2)
    found = []
    for size in sizes:
        tokens = torch.randint(4, 20, (2 * size, 6), generator=generator)
        tokens[:, 0], tokens[:, -1] = 1, 2
        found.append(
            CaptionBatch(
                image_ids=tuple(range(size)),
                inputs=Inputs(pixels_B3HW=torch.rand(size, 3, 16, 16, generator=generator)),
                tokens_RT=tokens,
                lengths_R=torch.full((2 * size,), 6),
                picture_of_row_R=torch.arange(size).repeat_interleave(2),
            )
        )
    return found


def objective(loss, dtype=torch.float64, dropout=0.0):
    torch.manual_seed(0)
    vision = VitTower(
        VitTowerConfig(architecture=SIZES | {"image_size": 16, "patch_size": 8}, trainable_from=0)
    )
    words = SIZES | {"vocab_size": 20, "max_position_embeddings": 8, "hidden_dropout_prob": dropout}
    words |= {"attention_probs_dropout_prob": 0.0}
    text = BertTower(BertTowerConfig(architecture=words, trainable_from=0))
    model = TwoTowers(
        TwoTowersConfig(width=8, loss=loss, smoothing=0.1 if loss == "unicl" else 0.0), vision, text
    )
    return ContrastiveObjective(model.to(dtype), 0, Gather())


def joined(parts):
    owners, before = [], 0
    for part in parts:
        owners.append(part.picture_of_row_R + before)
        before += part.picture_count
    return CaptionBatch(
        image_ids=tuple(range(before)),
        inputs=Inputs(pixels_B3HW=torch.cat([part.inputs.pixels_B3HW for part in parts])),
        tokens_RT=torch.cat([part.tokens_RT for part in parts]),
        lengths_R=torch.cat([part.lengths_R for part in parts]),
        picture_of_row_R=torch.cat(owners),
    )


@pytest.mark.parametrize("loss", ["softmax", "sigmoid", "unicl"])
def test_cached_gradients_are_those_of_the_whole_batch(loss):
    from accelerate import Accelerator

    parts, shares = batches([3, 2, 3]), Shares(0, 8, 0.0)
    whole, cached = objective(loss), objective(loss)
    named = whole(joined(parts), shares)
    named["loss"].backward()
    context = StepContext(Accelerator(cpu=True), cached.model, cached, (), StageSettings(), 0, shares)
    found = cached_backward(cached, parts, context)
    torch.testing.assert_close(found["loss"].double(), named["loss"].detach().double(), atol=1e-6, rtol=1e-6)
    theirs = dict(whole.model.named_parameters())
    compared = 0
    for name, weight in cached.model.named_parameters():
        if theirs[name].grad is not None:
            torch.testing.assert_close(weight.grad, theirs[name].grad, atol=1e-6, rtol=1e-5)
            compared += 1
    assert compared > 30 and cached.model.log_scale.grad.abs() > 0
    alone = objective(loss)
    sum(alone(part, shares)["loss"] for part in parts).backward()
    name = "text_projection.weight"
    difference = (dict(alone.model.named_parameters())[name].grad - theirs[name].grad).abs().max()
    assert difference > 1e-4, "parts by themselves have fewer negatives"


def test_dropout_is_the_same_in_both_passes():
    """Two cached passes with one seed agree, and the second pass of each uses the first one's dropout: the
    gradient of the scale, which needs one pass only, agrees with the weights' direction of descent."""
    from accelerate import Accelerator

    parts, shares = batches([3, 3]), Shares(0, 6, 0.0)
    grads = []
    for _ in range(2):
        made = objective("softmax", dropout=0.3)
        made.train()
        context = StepContext(Accelerator(cpu=True), made.model, made, (), StageSettings(), 0, shares)
        torch.manual_seed(5)
        seen = []
        hook = made.model.text.model.embeddings.register_forward_hook(
            lambda _, __, given, seen=seen: seen.append(given.detach().clone())
        )
        cached_backward(made, parts, context)
        hook.remove()
        assert len(seen) == 4 and torch.equal(seen[0], seen[2]) and torch.equal(seen[1], seen[3])
        grads.append(made.model.text_projection.weight.grad.clone())
    assert torch.equal(*grads)
