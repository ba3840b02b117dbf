"""Bordes et al.: what the two losses are, and what they leave alone."""

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st

from patchword.models.word_vectors.grounded_space import (
    GroundedSpace,
    GroundedSpaceConfig,
    SentencePairs,
    cluster_loss,
    perceptual_loss,
)


def with_cosines(cosines_BB):
    """Rows whose cosines are given."""
    return torch.linalg.cholesky(cosines_BB)


@given(scale=st.floats(0.05, 0.5), shift=st.floats(-0.1, 0.4))
@settings(max_examples=20, deadline=None)
def test_the_perceptual_loss_is_minus_one_where_similarities_are_affinely_related(scale, shift):
    pictures = torch.randn(6, 20, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    seen = F.normalize(pictures, dim=1)
    wanted = scale * (seen @ seen.t()) + shift
    wanted.fill_diagonal_(1.0)
    if torch.linalg.eigvalsh(wanted)[0] > 1e-3:
        assert abs(perceptual_loss(with_cosines(wanted), pictures) + 1) < 1e-9


def test_the_perceptual_loss_lies_between_minus_one_and_one_and_leaves_pictures_alone():
    generator = torch.Generator().manual_seed(2)
    for _ in range(10):
        text = torch.randn(5, 4, generator=generator, requires_grad=True)
        pictures = torch.randn(5, 3, generator=generator, requires_grad=True)
        loss = perceptual_loss(text, pictures)
        loss.backward()
        assert -1 <= loss <= 1 and text.grad.abs().max() > 0 and pictures.grad is None


def test_the_cluster_loss_is_zero_where_the_margin_is_kept_and_by_hand_where_not():
    apart = torch.eye(3)
    assert cluster_loss(apart, apart, 0.5) == 0
    near = torch.tensor([[1.0, 0.0], [0.6, 0.8]])
    # cos = 0.6 between the two pictures, 1 within: 0.5 - 1 + 0.6 on both sides.
    torch.testing.assert_close(cluster_loss(near, near, 0.5), torch.tensor(0.1))


@pytest.fixture
def model():
    torch.manual_seed(0)
    return GroundedSpace(GroundedSpaceConfig(word_width=6, width=8, grounded_width=5), 10)


SENTENCES = torch.tensor([[3, 1, 4, -1], [2, 7, -1, -1], [5, 9, 0, 8]])


def test_padding_changes_nothing(model):
    alone = model.encode(SENTENCES[1:2, :2])
    torch.testing.assert_close(model.encode(SENTENCES)[1:2], alone)
    longer = F.pad(SENTENCES, (0, 3), value=-1)
    model.config = model.config.model_copy(update={"dropped_words": 0.0})
    one, other = (model.text_loss(given, torch.Generator().manual_seed(0)) for given in (SENTENCES, longer))
    torch.testing.assert_close(one, other)


def test_dropped_words_leave_the_others_in_order(model):
    model.config = model.config.model_copy(update={"dropped_words": 0.5})
    short = model.shortened(SENTENCES.repeat(50, 1), torch.Generator().manual_seed(1))
    for row, sentence in zip(short.tolist(), SENTENCES.repeat(50, 1).tolist(), strict=True):
        kept = [word for word in row if word >= 0]
        rest = iter([word for word in sentence if word >= 0])
        assert kept and all(word in rest for word in kept)
        assert row == kept + [-1] * (short.shape[1] - len(kept))
    assert 0.4 < (short >= 0).float().mean() / (SENTENCES >= 0).float().mean() < 0.8


def test_where_most_words_are_dropped_every_word_is_some_times_alone(model):
    model.config = model.config.model_copy(update={"dropped_words": 0.9})
    short = model.shortened(SENTENCES[2:].repeat(200, 1), torch.Generator().manual_seed(1))
    assert set(short[(short >= 0).sum(1) == 1][:, 0].tolist()) == set(SENTENCES[2].tolist())
    assert ((short >= 0).sum(1) > 0).all()


def test_pictures_reach_the_text_encoder_and_not_themselves(model):
    pictures = torch.randn(3, 4, requires_grad=True)
    losses = model.loss(
        SentencePairs(SENTENCES, SENTENCES.flip(0), pictures), torch.Generator().manual_seed(2)
    )
    assert set(losses) == {"words", "cluster", "perceptual"}
    (losses["cluster"] + losses["perceptual"]).backward()
    assert (
        model.words.weight.grad.abs().max() > 0
        and pictures.grad is None
        and model.restore.weight.grad is None
    )


def test_without_weights_it_is_the_text_encoder(model):
    model.config = model.config.model_copy(update={"cluster_weight": 0.0, "perceptual_weight": 0.0})
    assert set(model.loss(SentencePairs(SENTENCES, SENTENCES, torch.randn(3, 4)), torch.Generator())) == {
        "words"
    }
