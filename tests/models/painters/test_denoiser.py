"""The denoiser of GLIDE: what it is told matters, what is padding does not, and attention is one softmax."""

import math

import pytest
import torch
from pydantic import ValidationError

from patchword.models.painters.denoiser import Denoiser, DenoiserConfig, TextAttention, sinusoids
from patchword.types import TextFeatures

SMALL = {"size": 16, "width": 16, "multipliers": (1, 2), "attention_at": (8,), "head_width": 8}


def made(**more) -> Denoiser:
    """A denoiser whose layers that begin at zero have random weights as well."""
    torch.manual_seed(0)
    model = Denoiser(DenoiserConfig(**{**SMALL, **more}), text_width=12).eval()
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=0.2)
    return model


def told(count: int = 2, length: int = 5, real: int = 5, seed: int = 1) -> TextFeatures:
    generator = torch.Generator().manual_seed(seed)
    mask_BL = (torch.arange(length) < real).expand(count, length)
    return TextFeatures(torch.randn(count, length, 12, generator=generator), mask_BL=mask_BL)


def inputs(count: int = 2, size: int = 16) -> tuple[torch.Tensor, torch.Tensor]:
    return torch.randn(count, 3, size, size, generator=torch.Generator().manual_seed(3)), torch.tensor(
        [5, 800]
    )[:count]


def test_the_attention_is_one_softmax_over_text_and_cells():
    torch.manual_seed(0)
    layer = TextAttention(16, 12, 8)
    torch.nn.init.normal_(layer.out.weight)
    text, map_BCHW = told(real=3), torch.randn(2, 16, 4, 4)
    hidden = torch.zeros(2, 5).masked_fill(~text.mask_BL, -math.inf)[:, None, None]
    found, weights = layer(map_BCHW, *layer.encode(text.tokens_BLC), hidden, want_weights=True)
    cells = layer.norm(map_BCHW).flatten(2).transpose(1, 2)
    q, k, v = layer.project(cells).chunk(3, -1)
    tk, tv = layer.project_text(text.tokens_BLC).chunk(2, -1)
    context = torch.zeros(2, 16, 16)
    for b in range(2):
        for h in range(2):
            part = slice(8 * h, 8 * h + 8)
            keys, values = (
                torch.cat([tk[b, :3, part], k[b, :, part]]),
                torch.cat([tv[b, :3, part], v[b, :, part]]),
            )
            shares = (q[b, :, part] @ keys.T / 8**0.5).softmax(-1)
            context[b, :, part] = shares @ values
            assert torch.allclose(weights[b, h, :, :3], shares[:, :3], atol=1e-6)
    expected = map_BCHW + layer.out(context).transpose(1, 2).unflatten(2, (4, 4))
    assert torch.allclose(found, expected, atol=1e-5)
    assert torch.equal(weights[..., 3:], torch.zeros(2, 2, 16, 2))


@pytest.mark.parametrize(
    "more", [{}, {"patch": 2, "attention_at": (8, 4)}, {"learnt_variance": True}, {"blocks": 2}]
)
def test_padding_changes_nothing_and_text_does(more):
    model, (noisy, times_B) = made(**more), inputs()
    found = model(noisy, times_B, model.encode(told()))
    assert found.shape == (2, 6 if more.get("learnt_variance") else 3, 16, 16)
    longer = told(length=9, real=5)
    longer = TextFeatures(torch.cat([told().tokens_BLC, longer.tokens_BLC[:, 5:]], 1), mask_BL=longer.mask_BL)
    assert torch.allclose(model(noisy, times_B, model.encode(longer)), found, atol=1e-5)
    assert not torch.allclose(model(noisy, times_B, model.encode(told(seed=2))), found, atol=1e-2)
    alone = model(noisy[:1], times_B[:1], model.encode(told(1)._replace(tokens_BLC=told().tokens_BLC[:1])))
    assert torch.allclose(alone, found[:1], atol=1e-5)


def test_it_begins_at_nothing_and_every_parameter_learns():
    torch.manual_seed(0)
    model = Denoiser(DenoiserConfig(**SMALL), text_width=12)
    noisy, times_B = inputs()
    assert torch.equal(model(noisy, times_B, model.encode(told())), torch.zeros(2, 3, 16, 16))
    model = made(picture_width=6, small_size=8).train()
    memory = model.encode(told(), torch.randn(2, 6), torch.randn(2, 3, 8, 8))
    model(noisy, times_B, memory).pow(2).sum().backward()
    assert not [name for name, p in model.named_parameters() if p.grad is None or not p.grad.abs().sum() > 0]


def test_a_picture_embedding_adds_four_tokens_and_counts():
    model, (noisy, times_B) = made(picture_width=6), inputs()
    first, second = (model.encode(told(), torch.full((2, 6), value)) for value in (0.0, 1.0))
    assert first.keys[0].shape[2] == 5 + 4
    assert not torch.allclose(model(noisy, times_B, first), model(noisy, times_B, second), atol=1e-2)


def test_maps_of_the_words_are_collected_for_every_attention():
    model, (noisy, times_B) = made(patch=2, attention_at=(8, 4)), inputs()
    maps: list[torch.Tensor] = []
    plain = model(noisy, times_B, model.encode(told()))
    assert torch.allclose(model(noisy, times_B, model.encode(told()), maps), plain, atol=1e-5)
    assert len(maps) == len(model.attentions()) and {m.shape[2] for m in maps} == {64, 16}
    assert all(m.shape[3] == 5 and 0 < m.sum(-1).max() < 1 for m in maps)


def test_times_are_told_apart():
    waves = sinusoids(torch.tensor([0, 1, 999]), 8)
    assert waves.shape == (3, 8) and torch.equal(waves[0], torch.tensor([1.0] * 4 + [0.0] * 4))
    assert torch.cdist(waves, waves).add(torch.eye(3)).min() > 0.1


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"size": 18}, "size is 18 and 2 levels of patches of 1 pixels need a multiple of 2|attention_at"),
        ({"size": 17}, "need a multiple of 2"),
        ({"head_width": 5}, "heads of 5 do not divide"),
        ({"attention_at": (5,)}, "attention_at names a map of side 5; the maps have"),
    ],
)
def test_sizes_that_do_not_divide_are_refused(wrong, message):
    with pytest.raises(ValidationError, match=message):
        DenoiserConfig(**{**SMALL, **wrong})
