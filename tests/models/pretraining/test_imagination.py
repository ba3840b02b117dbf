"""Lu et al.: a latent that climbs a score, and the mixing of text and imagination."""

import pytest
import torch
import torch.nn.functional as F

from patchword.models.painters.discrete_vae import DiscreteVae, DiscreteVaeConfig
from patchword.models.painters.vit_vqgan import VitVqgan, VitVqganConfig
from patchword.models.pretraining.imagination import (
    ImaginationClassifier,
    ImaginationConfig,
    imagine,
    random_crop,
)


def vit_vqgan():
    torch.manual_seed(0)
    codec = VitVqgan(
        VitVqganConfig(size=8, patch=4, codes=12, code_width=4, width=16, layers=1, heads=2)
    ).eval()
    return codec, torch.randn(3, 4, 4)


def discrete_vae():
    torch.manual_seed(0)
    codec = DiscreteVae(DiscreteVaeConfig(size=8, codes=12, groups=2, width=4, start_width=4)).eval()
    return codec, torch.randn(3, 16, 12)


@pytest.mark.parametrize("made", [vit_vqgan, discrete_vae])
def test_a_relaxed_latent_is_drawn_as_its_codes_and_has_a_gradient(made):
    codec, latent = made()
    nearest = codec.nearest(F.normalize(latent, dim=-1)) if made is vit_vqgan else latent.argmax(-1)
    drawn = codec.relaxed(latent.requires_grad_())
    torch.testing.assert_close(drawn, codec.decode(nearest), rtol=1e-4, atol=1e-5)
    drawn.sum().backward()
    assert latent.grad.abs().sum() > 0


def redness(pictures):
    """A score with one answer."""
    return pictures[:, 0].mean((1, 2)) - pictures[:, 1:].mean((1, 2, 3))


@pytest.mark.parametrize("made", [vit_vqgan, discrete_vae])
def test_the_search_raises_the_score_and_leaves_the_codec_alone(made):
    codec, latent = made()
    before = {name: value.clone() for name, value in codec.state_dict().items()}
    generator = torch.Generator().manual_seed(1)
    found = imagine(codec.relaxed, redness, latent, 30, rate=0.3, generator=generator)
    assert found.scores_SB.shape == (31, 3) and (found.scores_SB[-1] > found.scores_SB[0]).all()
    torch.testing.assert_close(redness(found.pictures_B3HW), found.scores_SB[-1])
    assert 0 <= found.pictures_B3HW.min() and found.pictures_B3HW.max() <= 1
    assert all(torch.equal(value, before[name]) for name, value in codec.state_dict().items())
    assert all(parameter.grad is None for parameter in codec.parameters())


def test_texts_of_a_batch_do_not_touch_each_other():
    codec, latent = vit_vqgan()
    together = imagine(codec.relaxed, redness, latent, 5, crops=0)
    alone = imagine(codec.relaxed, redness, latent[1:2], 5, crops=0)
    torch.testing.assert_close(together.pictures_B3HW[1:2], alone.pictures_B3HW, rtol=1e-4, atol=1e-4)


def test_a_crop_is_a_square_of_the_picture():
    picture = torch.arange(64.0).view(1, 1, 8, 8).expand(2, 3, 8, 8)
    assert torch.equal(random_crop(picture, 1.0, None), picture)
    part = random_crop(picture, 0.5, torch.Generator().manual_seed(0))
    assert part.shape == picture.shape and torch.equal(part[0], part[1])
    assert part.max() - part.min() < 63


def classifier(**changes):
    torch.manual_seed(0)
    return ImaginationClassifier(ImaginationConfig(hidden=8, **changes), 5, 4, 3).eval()


TEXT = torch.randn(6, 5, generator=torch.Generator().manual_seed(2))
SEEN = torch.randn(6, 4, generator=torch.Generator().manual_seed(3))
TARGET = torch.tensor([0, 1, 2, 0, 1, 2])


def test_without_weight_it_is_the_text_alone():
    model = classifier(weight=0.0)
    torch.testing.assert_close(model(TEXT, SEEN), model.text(TEXT).softmax(1))
    torch.testing.assert_close(model(TEXT, SEEN), model(TEXT, -SEEN))
    losses = model.loss(TEXT, SEEN, TARGET)
    assert losses["imagination"] == 0
    torch.testing.assert_close(losses["text"], F.cross_entropy(model.text(TEXT), TARGET))


def test_losses_and_predictions_are_mixed():
    model = classifier(weight=0.25)
    text, seen = model.logits(TEXT, SEEN)
    torch.testing.assert_close(model(TEXT, SEEN), 0.75 * text.softmax(1) + 0.25 * seen.softmax(1))
    losses = model.loss(TEXT, SEEN, TARGET)
    torch.testing.assert_close(losses["text"], 0.75 * F.cross_entropy(text, TARGET))
    torch.testing.assert_close(losses["imagination"], 0.25 * F.cross_entropy(seen, TARGET))


def test_squashed_logits_keep_the_loss_from_zero():
    plain, squashed = classifier(weight=1.0), classifier(weight=1.0, logit_squash="tanh")
    torch.testing.assert_close(squashed.logits(TEXT, SEEN)[1], plain.logits(TEXT, SEEN)[1].tanh())
    with torch.no_grad():
        squashed.imagination[-1].weight.mul_(1000)
    assert squashed.loss(TEXT, SEEN, TARGET)["imagination"] > 0.2  # log(1 + 2 / e^2) is the least
