"""Silberer and Lapata: what is hidden, and that one side is restored from the other."""

import torch

from patchword.models.word_vectors.autoencoder import AutoencoderConfig, BimodalAutoencoder, WordBatch, masked


def test_the_share_of_hidden_numbers_is_the_noise():
    x = torch.ones(200, 100)
    kept = masked(x, 0.2, torch.Generator().manual_seed(0))
    assert set(kept.unique().tolist()) == {0.0, 1.0} and abs(float(kept.mean()) - 0.8) < 0.01


def test_layer_by_layer_training_keeps_the_layers_apart():
    """The second layer's error gives the first one no gradient."""
    model = BimodalAutoencoder(AutoencoderConfig(text=(6, 4), pictures=(6, 4), width=5), 8, 7, 3)
    side, x = model.text, torch.randn(5, 8)
    loss = side.layerwise_loss(x, 0.0, torch.Generator().manual_seed(0))
    first_only = torch.nn.functional.mse_loss(side.first.restore(side.first(x)), x)
    (whole,) = torch.autograd.grad(loss, side.first.encode.weight)
    (alone,) = torch.autograd.grad(first_only, side.first.encode.weight)
    torch.testing.assert_close(whole, alone)


def test_every_parameter_of_the_joint_stage_learns():
    model = BimodalAutoencoder(
        AutoencoderConfig(text=(6, 4), pictures=(6, 4), width=5, label_weight=0.1), 8, 7, 3
    )
    batch = WordBatch(torch.tensor([0, 1, 2]), torch.randn(3, 8), torch.randn(3, 7))
    sum(model.loss(batch, torch.Generator().manual_seed(1)).values()).backward()
    assert all(p.grad is not None and p.grad.abs().max() > 0 for p in model.parameters())


def test_each_side_is_restored_from_the_other():
    """Both sides follow from three hidden facts of a word: at least 30 % better than saying the mean."""
    generator = torch.Generator().manual_seed(0)
    facts_WF = torch.randn(64, 3, generator=generator)
    text_WT = facts_WF @ torch.randn(3, 10, generator=generator)
    pictures_WP = facts_WF @ torch.randn(3, 8, generator=generator)
    torch.manual_seed(0)
    model = BimodalAutoencoder(
        AutoencoderConfig(text=(32, 16), pictures=(32, 16), width=24, noise=0.0), 10, 8, 64
    )
    optimiser = torch.optim.Adam(model.parameters(), lr=5e-3)
    batch = WordBatch(torch.arange(64), text_WT, pictures_WP)
    for step in range(400):
        losses = model.layerwise_loss(batch, generator) if step < 100 else model.loss(batch, generator)
        optimiser.zero_grad()
        sum(losses.values()).backward()
        optimiser.step()
    with torch.no_grad():
        zeros = torch.zeros_like
        of_text = model.restored(model(zeros(text_WT), pictures_WP))[0]
        of_pictures = model.restored(model(text_WT, zeros(pictures_WP)))[1]
    for restored, wanted in ((of_text, text_WT), (of_pictures, pictures_WP)):
        error, of_the_mean = (restored - wanted).square().mean(), (wanted - wanted.mean(0)).square().mean()
        assert error < 0.7 * of_the_mean
