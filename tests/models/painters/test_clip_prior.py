"""unCLIP's prior: one causal sequence read at the query, scale of the embeddings, texts that are left out."""

import torch

from patchword.models.painters.clip_prior import ClipPrior, ClipPriorConfig, TextSide, best_of, scaled, silent


def made() -> ClipPrior:
    torch.manual_seed(0)
    model = ClipPrior(
        ClipPriorConfig(width=16, heads=2, layers=2, longest=9), text_width=12, embedding_width=6
    )
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=0.3)
    return model.eval()


def told(length: int = 5, real: int = 5, seed: int = 1) -> TextSide:
    generator = torch.Generator().manual_seed(seed)
    mask_BL = (torch.arange(length) < real).expand(2, length)
    sentence_BE = torch.nn.functional.normalize(torch.randn(2, 6, generator=generator), dim=-1)
    return TextSide(torch.randn(2, length, 12, generator=generator), mask_BL, sentence_BE)


def test_padding_changes_nothing_and_every_part_counts():
    model, noisy, times = made(), torch.randn(2, 6), torch.tensor([3, 700])
    found = model(noisy, times, told())
    longer = told(8, 5, seed=2)
    padded = TextSide(
        torch.cat([told().tokens_BLC, longer.tokens_BLC[:, 5:]], 1), longer.mask_BL, told().sentence_BE
    )
    assert torch.allclose(model(noisy, times, padded), found, atol=1e-5)
    for other in (
        model(noisy + 1, times, told()),
        model(noisy, times.flip(0), told()),
        model(noisy, times, told()._replace(sentence_BE=told(seed=2).sentence_BE)),
        model(noisy, times, told()._replace(tokens_BLC=told(seed=2).tokens_BLC)),
    ):
        assert not torch.allclose(other, found, atol=1e-3)


def test_what_is_read_at_a_place_does_not_depend_on_what_comes_after_it():
    """States at the text's tokens stay as they are, whatever embedding is noised and whenever."""
    model, states = made(), []
    model.layers[-1].register_forward_hook(lambda module, given, x_BSC: states.append(x_BSC))
    model(torch.zeros(2, 6), torch.tensor([1, 2]), told())
    model(torch.ones(2, 6), torch.tensor([1, 2]), told())
    assert torch.equal(states[0][:, :7], states[1][:, :7])  # five tokens, the sentence, the time
    assert not torch.allclose(states[0][:, 7:], states[1][:, 7:], atol=1e-3)


def test_a_text_that_is_left_out_leaves_nothing_of_itself():
    model, noisy, times = made(), torch.randn(2, 6), torch.tensor([3, 700])
    everything = torch.tensor([True, True])
    a, b = (model(noisy, times, silent(told(seed=seed), everything)) for seed in (1, 2))
    assert torch.equal(a, b)
    assert not torch.allclose(a, model(noisy * 2, times, silent(told(), everything)), atol=1e-3)
    half = model(noisy, times, silent(told(), torch.tensor([False, True])))
    assert torch.allclose(half[0], model(noisy, times, told())[0], atol=1e-5)


def test_embeddings_have_the_size_of_the_noise():
    found = scaled(torch.randn(50, 64) * 7)
    assert torch.allclose(found.pow(2).sum(-1), torch.full((50,), 64.0), rtol=1e-5)


def test_of_several_samples_the_nearest_to_the_text_counts():
    samples = torch.tensor([[[3.0, 0.0], [0.0, 2.0]], [[0.0, 5.0], [1.0, 0.0]]])
    assert torch.equal(
        best_of(samples, torch.tensor([[1.0, 0.0], [1.0, 0.0]])), torch.tensor([[1.0, 0.0], [1.0, 0.0]])
    )
