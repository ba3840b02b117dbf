"""Exact properties of codecs and of the transformers that write their tokens."""

import math

import pytest
import torch
import torch.nn.functional as F

from patchword.models.painters.discrete_vae import (
    DiscreteVae,
    DiscreteVaeConfig,
    divergence_from_uniform,
    laplace_log_likelihood,
)
from patchword.models.painters.token_transformer import Dalle, DalleConfig, Parti, PartiConfig
from patchword.models.painters.vit_vqgan import VitVqgan, VitVqganConfig
from patchword.tasks.paint.families import TokenChoice, Wish
from patchword.tasks.paint.tokens import choose, write_tokens

CODEC = VitVqganConfig(size=16, width=16, layers=1, heads=2, codes=32, code_width=4)


def dalle(sparse=False, **given):
    torch.manual_seed(0)
    return Dalle(
        DalleConfig(codec=CODEC, width=16, layers=4, heads=2, text_length=8, sparse=sparse, **given), 40
    ).eval()


def told():
    words = torch.randint(4, 40, (3, 8), generator=torch.Generator().manual_seed(1))
    real = torch.ones(3, 8, dtype=torch.bool)
    real[1, 5:] = False
    return words, real


@pytest.mark.parametrize("sparse", [False, True])
def test_a_later_token_never_moves_an_earlier_logit(sparse):
    model, (words, real) = dalle(sparse), told()
    ids = torch.randint(32, (3, 16))
    text, picture = model(words, real, ids)
    for place in (0, 5, 15):
        changed = ids.clone()
        changed[:, place] = (changed[:, place] + 1) % 32
        text_again, again = model(words, real, changed)
        assert torch.equal(text, text_again), "the text never sees the picture"
        assert torch.equal(picture[:, : place + 1], again[:, : place + 1])
        if place < 15:
            assert not torch.equal(picture[:, place + 1], again[:, place + 1])
    changed = words.clone()
    changed[:, 4] += 1
    text_again, again = model(changed % 40, real, ids)
    assert torch.equal(text[:, :4], text_again[:, :4])
    assert not torch.equal(picture[:, 0], again[:, 0]), "the picture sees all of the text"


@pytest.mark.parametrize("sparse", [False, True])
def test_writing_token_by_token_gives_the_logits_of_the_whole(sparse):
    model, (words, real) = dalle(sparse), told()
    ids = torch.randint(32, (3, 16))
    _, whole = model(words, real, ids)
    logits, state = model.start(words, real)
    found = [logits]
    for place in range(15):
        logits, state = model.step(ids[:, place], state)
        found.append(logits)
    assert torch.allclose(torch.stack(found, 1), whole, atol=2e-6)


def test_parti_writes_the_logits_of_the_whole_and_ignores_padding():
    torch.manual_seed(0)
    model = Parti(PartiConfig(codec=CODEC, width=16, layers=2, heads=2), 12).eval()
    tokens, (_, real) = torch.randn(3, 8, 12), told()
    ids = torch.randint(32, (3, 16))
    text = model.tell(tokens, real)
    whole = model(text, ids)
    logits, state = model.start(text)
    found = [logits]
    for place in range(15):
        logits, state = model.step(ids[:, place], text, state)
        found.append(logits)
    assert torch.allclose(torch.stack(found, 1), whole, atol=2e-6)
    changed = tokens.masked_fill(~real[..., None], 7.0)
    assert torch.equal(model(model.tell(changed, real), ids), whole)


def test_padding_has_a_token_of_its_own_at_every_position():
    model, (words, real) = dalle(), told()
    changed = torch.where(real, words, 9)
    ids = torch.randint(32, (3, 16))
    assert torch.equal(model(words, real, ids)[1], model(changed, real, ids)[1])


def test_the_divergence_from_uniform_by_hand():
    logits = torch.tensor([0.0, 0.0, 0.0, 0.0]).view(1, 4, 1, 1)
    assert float(divergence_from_uniform(logits)) == pytest.approx(0.0, abs=1e-7)
    shares = torch.tensor([0.5, 0.25, 0.125, 0.125])
    expected = math.log(4) + float((shares * shares.log()).sum())
    assert float(divergence_from_uniform(shares.log().view(1, 4, 1, 1))) == pytest.approx(expected, rel=1e-6)


def test_logit_laplace_by_hand_and_as_a_density():
    pixel, mean, log_scale = 0.25, -0.4, 0.3
    x = 0.8 * pixel + 0.1
    scale = math.exp(log_scale)
    expected = -abs(math.log(x / (1 - x)) - mean) / scale - math.log(2 * scale * x * (1 - x))
    given = torch.tensor([mean, log_scale]).repeat_interleave(3).view(1, 6, 1, 1)
    found = laplace_log_likelihood(torch.full((1, 3, 1, 1), pixel), given)
    assert torch.allclose(found, torch.full_like(found, expected), atol=1e-5)
    # Over all x in (0, 1) it integrates to one; pixels cover x from 0.1 to 0.9.
    x = torch.linspace(1e-5, 1 - 1e-5, 400_001).double()
    pixels = ((x - 0.1) / 0.8).view(1, 1, 1, -1).expand(1, 3, 1, -1)
    wide = given.double().expand(1, 6, 1, len(x))
    assert float(torch.trapezoid(laplace_log_likelihood(pixels, wide)[0, 0, 0].exp(), x)) == pytest.approx(
        1, abs=2e-3
    )


@pytest.mark.parametrize(
    "build",
    [lambda: DiscreteVae(DiscreteVaeConfig(size=16, width=8, codes=16)), lambda: VitVqgan(CODEC)],
    ids=["DiscreteVae", "VitVqgan"],
)
def test_a_codec_learns_to_give_pictures_back(build):
    torch.manual_seed(0)
    codec = build()
    pictures = torch.rand(8, 3, 1, 1).expand(-1, -1, 16, 16).contiguous()
    optimiser = torch.optim.Adam(codec.parameters(), 5e-3)
    with torch.no_grad():
        before = float(F.mse_loss(codec.decode(codec.encode(pictures)), pictures))
    for step in range(120):
        found = codec.losses(pictures, step / 120)
        optimiser.zero_grad()
        (found.reconstruction + found.regulariser).backward()
        optimiser.step()
    codec.eval()
    ids = codec.encode(pictures)
    assert ids.shape == (8, codec.side**2) and int(ids.max()) < codec.codes
    with torch.no_grad():
        after = float(F.mse_loss(codec.decode(ids), pictures))
    assert after < 0.75 * before


def test_codes_do_not_depend_on_the_length_of_a_vector_and_gradients_pass_straight_through():
    torch.manual_seed(0)
    codec = VitVqgan(CODEC)
    vectors = torch.randn(2, 16, 4)
    assert torch.equal(codec.nearest(F.normalize(vectors, dim=-1)), codec.nearest(5 * vectors))
    with torch.no_grad():
        codec.codebook.mul_(3)
    assert torch.equal(codec.nearest(vectors), codec.nearest(5 * vectors))
    codec.losses(torch.rand(2, 3, 16, 16), 0.5).reconstruction.backward()
    assert codec.patches.weight.grad.abs().sum() > 0, "the reconstruction teaches the encoder"
    assert codec.codebook.grad is None or not codec.codebook.grad.any(), "and not the codes"


def test_codes_that_nothing_chooses_are_placed_anew():
    torch.manual_seed(0)
    codec = VitVqgan(CODEC.model_copy(update={"idle_steps": 3}))
    pictures = torch.rand(4, 3, 16, 16)
    codec.losses(pictures, 0.0)
    with torch.no_grad():
        codec.codebook[5] = -F.normalize(codec.vectors(pictures).mean((0, 1)), dim=0)  # far from everything
    far = codec.codebook[5].clone()
    for _ in range(4):
        codec.losses(pictures, 0.0)
    assert not torch.equal(codec.codebook[5], far)


def test_choosing_follows_the_probabilities_and_keeps_to_what_is_kept():
    logits = torch.tensor([0.5, 0.3, 0.15, 0.05]).log()[None]
    numbers = torch.linspace(0, 1, 2001)[:-1]
    found = choose(logits.expand(2000, -1), numbers, TokenChoice(1.0, None, None))
    assert torch.bincount(found, minlength=4).tolist() == pytest.approx([1000, 600, 300, 100], abs=2)
    assert set(choose(logits.expand(2000, -1), numbers, TokenChoice(1.0, 2, None)).tolist()) == {0, 1}
    assert set(choose(logits.expand(2000, -1), numbers, TokenChoice(1.0, None, 0.75)).tolist()) == {0, 1}
    assert set(choose(logits.expand(2000, -1), numbers, TokenChoice(0.0, None, None)).tolist()) == {0}
    colder = choose(logits.expand(2000, -1), numbers, TokenChoice(0.5, None, None))
    assert (colder == 0).sum() > 1000


def test_guidance_of_one_is_told_and_of_zero_untold_bit_for_bit():
    model, (words, real) = dalle(), told()
    nothing, none_real = torch.zeros_like(words), torch.zeros_like(real)
    wish = Wish(range(3))

    def write(rows, guidance):
        first = model.start(torch.cat([one for one, _ in rows]), torch.cat([one for _, one in rows]))
        return write_tokens(first, model.step, model.cells, wish, guidance)

    with torch.no_grad():
        alone, untold = write([(words, real)], 1.0), write([(nothing, none_real)], 0.0)
        both = [(words, real), (nothing, none_real)]
        assert torch.equal(write(both, 1.0), alone)
        assert torch.equal(write(both, 0.0), untold)
        assert not torch.equal(write(both, 6.0), alone)


@pytest.mark.parametrize(
    ("build", "message"),
    [
        (lambda: DiscreteVaeConfig(size=18, groups=3), "choose a multiple of 4"),
        (lambda: VitVqganConfig(size=18, patch=4), "patches of 4 do not divide"),
        (lambda: VitVqganConfig(width=30, heads=4), "4 heads do not divide"),
        (lambda: PartiConfig(codec=CODEC, width=30, heads=4), "4 heads do not divide"),
    ],
)
def test_sizes_that_do_not_fit_are_refused(build, message):
    with pytest.raises(ValueError, match=message):
        build()
