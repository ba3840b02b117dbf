import math

import pytest
import torch
from torch.testing import assert_close

from patchword.losses import caption_cross_entropy, doubly_stochastic, hinge_loss, ratio_loss, warm_up

PAD = 0


def test_cross_entropy_by_hand():
    logits_BTV = torch.tensor(
        [[[0.0, 0.0, 0.0, 0.0], [0.0, 0.0, math.log(2.0), 0.0]], [[0.0, 0.0, 0.0, 0.0], [9.0, 9.0, 9.0, 9.0]]]
    )
    total, count = caption_cross_entropy(logits_BTV, torch.tensor([[1, 2], [3, PAD]]), PAD)
    assert count == 3
    assert_close(total, torch.tensor(math.log(4) + math.log(5 / 2) + math.log(4)))


def test_smoothing_spreads_a_share_over_the_vocabulary():
    logits_BTV = torch.tensor([[[0.0, math.log(3.0)]]])
    total, _ = caption_cross_entropy(logits_BTV, torch.tensor([[1]]), PAD, label_smoothing=0.2)
    assert_close(total, torch.tensor(-0.9 * math.log(0.75) - 0.1 * math.log(0.25)))


def test_parts_of_a_batch_add_up_to_the_whole_and_padding_gets_no_gradient():
    torch.manual_seed(0)
    logits_BTV = torch.randn(4, 3, 5, requires_grad=True)
    targets_BT = torch.tensor([[1, 2, 3], [4, PAD, PAD], [2, 2, PAD], [1, PAD, PAD]])
    whole = caption_cross_entropy(logits_BTV, targets_BT, PAD)
    parts = [
        caption_cross_entropy(logits_BTV[rows], targets_BT[rows], PAD) for rows in (slice(0, 1), slice(1, 4))
    ]
    for found, first, second in zip(whole, *parts, strict=True):
        assert_close(found, first + second)
    whole[0].backward()
    assert not logits_BTV.grad[targets_BT == PAD].any()


ATTENTION_BTN = torch.tensor([[[0.5, 0.25, 0.25], [0.0, 0.5, 0.5]]])


def test_doubly_stochastic_by_hand():
    total, captions = doubly_stochastic(ATTENTION_BTN, torch.tensor([2]))
    assert captions == 1
    assert_close(total, torch.tensor(0.5**2 + 0.25**2 + 0.25**2))
    assert_close(doubly_stochastic(ATTENTION_BTN, torch.tensor([2]), mean_over_patches=True)[0], total / 3)


def test_words_beyond_the_caption_and_hidden_patches_count_for_nothing():
    assert_close(
        doubly_stochastic(ATTENTION_BTN, torch.tensor([1]))[0], torch.tensor(0.5**2 + 0.75**2 + 0.75**2)
    )
    mask_BN = torch.tensor([[True, True, False]])
    assert_close(
        doubly_stochastic(ATTENTION_BTN, torch.tensor([2]), mask_BN=mask_BN)[0],
        torch.tensor(0.5**2 + 0.25**2),
    )
    mean = doubly_stochastic(ATTENTION_BTN, torch.tensor([2]), mean_over_patches=True, mask_BN=mask_BN)[0]
    assert_close(mean, torch.tensor((0.5**2 + 0.25**2) / 2))


def test_hinge_by_hand():
    similarities = torch.tensor([[1.0, 0.9, 0.2], [0.95, 0.8, 0.5], [0.1, 0.7, 0.6]])
    owner = torch.tensor([0, 1, 2])
    # other captions: [.1, 0], [.35, 0], [0, .3]; other pictures: [.15, 0], [.3, .1], [0, .1]
    assert float(hinge_loss(similarities, owner, 0.2, hardest=False)) == pytest.approx(
        0.1 + 0.35 + 0.3 + 0.15 + 0.3 + 0.1 + 0.1
    )
    assert float(hinge_loss(similarities, owner, 0.2, hardest=True)) == pytest.approx(
        0.1 + 0.35 + 0.3 + 0.15 + 0.3 + 0.1
    )


def test_captions_of_one_picture_are_no_negatives_of_each_other():
    similarities = torch.tensor([[1.0, 0.9, 0.8], [0.3, 0.95, 0.7]])
    # Picture 0 has captions 0 and 1. Other captions: 0.2 + 0.8 - 1.0, 0.2 + 0.8 - 0.9; for caption 2: 0
    # (0.3), 0.2 + 0.95 - 0.7. Other pictures: 0, 0.2 + 0.95 - 0.9; for caption 2: 0.2 + 0.8 - 0.7.
    assert float(hinge_loss(similarities, torch.tensor([0, 0, 1]), 0.2, hardest=True)) == pytest.approx(
        0.1 + 0.45 + 0.25 + 0.3
    )


def test_warm_up_is_a_line():
    assert [warm_up(done, 4) for done in (0, 1, 4, 9)] == [0.0, 0.25, 1.0, 1.0] and warm_up(0, 0) == 1.0


def test_ratio_loss_by_hand():
    keep = torch.tensor([[[1.0, 1.0, 0.0, 0.0], [1.0, 0.0, 0.0, 0.0]]])
    assert float(ratio_loss(keep, 0.5)) == pytest.approx((0.0 + 0.25**2) / 2)
