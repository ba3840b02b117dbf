"""Equality with the public code of DF-GAN, AttnGAN and DALL-E's codec on random weights, kits under
tests/kits/painters. The public AttnGAN repeats its padding mask over cells in the wrong order where a batch has
more than one text, so its two texts were run one by one.
"""

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from patchword.convert.painters import (
    ATTN_GAN_GENERATOR,
    DF_GAN_DISCRIMINATOR,
    DF_GAN_GENERATOR,
    DISCRETE_VAE,
    load_reference,
)
from patchword.errors import ModelError
from patchword.models.painters.attn_gan import AttnGan, AttnGanConfig, word_region_weights, word_scores
from patchword.models.painters.df_gan import DfGan, DfGanConfig, gradient_penalty
from patchword.models.painters.discrete_vae import DiscreteVae, DiscreteVaeConfig

KITS = Path(__file__).parents[1] / "kits" / "painters"


def kit(name):
    return load_file(KITS / f"{name}.safetensors")


def part(tensors, *prefixes, keep=False):
    return {
        key if keep else key.removeprefix(f"{prefix}."): value
        for key, value in tensors.items()
        for prefix in prefixes
        if key.startswith(f"{prefix}.")
    }


def close(found, expected):
    return float((found.detach() - expected).abs().max()) <= 1e-5 * float(expected.abs().max()) + 1e-6


def test_df_gan():
    tensors = kit("df_gan")
    model = DfGan(DfGanConfig(size=32, noise=6, width=4, judge_width=4), 10)
    load_reference(model.generator, part(tensors, "generator"), DF_GAN_GENERATOR)
    load_reference(
        model.discriminator, part(tensors, "discriminator", "judge", keep=True), DF_GAN_DISCRIMINATOR
    )
    pictures = model.paint(tensors["noise"], tensors["sentence"])
    assert close(pictures, tensors["pictures"])
    assert close(model.discriminator(tensors["pictures"], tensors["sentence"]), tensors["scores"])
    penalty = gradient_penalty(model.discriminator, tensors["pictures"], tensors["sentence"], 6)
    assert close(penalty, tensors["penalty"])


def test_attn_gan_generator():
    tensors = kit("attn_gan")
    config = AttnGanConfig(size=128, stages=2, noise=5, condition=6, words=8, width=2)
    model = AttnGan(config, 8).eval()
    load_reference(model.generator, part(tensors, "generator"), ATTN_GAN_GENERATOR)
    with torch.no_grad():
        painted = model.generator(tensors["noise"], tensors["sentence"], tensors["words"], tensors["real"])
    assert close(painted.pictures[0][:, :, ::2, ::2], tensors["small_every_second"])
    assert close(painted.pictures[1][:, :, ::4, ::4], tensors["large_every_fourth"])
    weights_BTHW = painted.weights[0].transpose(1, 2).unflatten(2, (64, 64))
    assert close(weights_BTHW[:, :, ::4, ::4], tensors["weights_every_fourth"])


def test_matching_of_words_and_regions():
    tensors = kit("damsm")
    mask = torch.arange(5)[None] < tensors["lengths"][:, None]
    same = tensors["classes"][:, None] == tensors["classes"][None]
    _, over_regions = word_region_weights(tensors["regions"], tensors["words"], mask, 4.0)
    assert close(over_regions[0, 0], tensors["map_0"])
    by_words = 10 * word_scores(tensors["regions"], tensors["words"], mask, 4.0, 5.0)
    normal = torch.nn.functional.normalize
    by_whole = 10 * normal(tensors["whole"], dim=1) @ normal(tensors["sentence"], dim=1).T
    own = torch.arange(4)
    for scores, expected in ((by_words, tensors["words_losses"]), (by_whole, tensors["sentence_losses"])):
        scores = scores.masked_fill(same & ~torch.eye(4, dtype=torch.bool), float("-inf"))
        losses = [torch.nn.functional.cross_entropy(one, own) for one in (scores, scores.T)]
        assert close(torch.stack(losses), expected)
    # The model's own loss is the sum of the four.
    model = AttnGan(AttnGanConfig(size=16, words=8), 8).matching
    model.see = lambda pictures: (tensors["regions"], tensors["whole"])
    total = model.loss(torch.zeros(4, 3, 16, 16), tensors["words"], tensors["sentence"], mask, same)
    assert close(total, tensors["words_losses"].sum() + tensors["sentence_losses"].sum())


def test_discrete_vae():
    tensors = kit("discrete_vae")
    codec = DiscreteVae(DiscreteVaeConfig(size=16, codes=16, groups=4, blocks=1, width=8, start_width=8))
    load_reference(codec, part(tensors, "encoder", "decoder", keep=True), DISCRETE_VAE)
    with torch.no_grad():
        assert close(codec.encoder(tensors["pictures"]), tensors["logits"])
        ids = codec.encode(tensors["pictures"])
        chosen = torch.nn.functional.one_hot(ids, 16).float().transpose(1, 2).unflatten(2, (2, 2))
        assert close(codec.decoder(chosen), tensors["stats"])


def test_weights_that_do_not_fit_are_refused():
    state = part(kit("df_gan"), "generator")
    model = DfGan(DfGanConfig(size=32, noise=6, width=4, judge_width=4), 10).generator
    with pytest.raises(ModelError, match="other.weight belongs to no part of Generator"):
        load_reference(model, {**state, "other.weight": torch.zeros(1)}, DF_GAN_GENERATOR)
    with pytest.raises(ModelError, match="start.bias is missing"):
        load_reference(model, {key: one for key, one in state.items() if key != "fc.bias"}, DF_GAN_GENERATOR)
    with pytest.raises(ModelError, match=r"start.weight has shape .*512, 6.* needs .*512, 7"):
        other = DfGan(DfGanConfig(size=32, noise=7, width=4, judge_width=4), 9).generator
        load_reference(other, state, DF_GAN_GENERATOR)
