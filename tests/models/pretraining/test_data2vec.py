"""data2vec by hand: teacher, targets and loss; parity of the encoder with transformers; what is hidden."""

import pytest
import torch
from torch import nn
from transformers import Data2VecVisionConfig, Data2VecVisionModel

from patchword.errors import ConfigError
from patchword.layers.masking import block_masks, span_masks
from patchword.models.pretraining.data2vec import (
    Data2Vec,
    Data2VecConfig,
    Prediction,
    deviation,
    explained,
    recorded,
    regression_loss,
)
from patchword.towers.bert import BertTower
from patchword.towers.settings import BertTowerConfig, VitTowerConfig
from patchword.towers.vit import VitTower

SIZES = {"hidden_size": 16, "num_hidden_layers": 3, "num_attention_heads": 2, "intermediate_size": 24}
VIT = SIZES | {"image_size": 16, "patch_size": 4}


def vit() -> VitTower:
    return VitTower(VitTowerConfig(architecture=VIT, trainable_from=0))


def bert() -> BertTower:
    sizes = SIZES | {"vocab_size": 20, "max_position_embeddings": 12, "pad_token_id": 0}
    return BertTower(BertTowerConfig(architecture=sizes, trainable_from=0))


@pytest.fixture
def pictures():
    generator = torch.Generator().manual_seed(0)
    return torch.rand(3, 3, 16, 16, generator=generator), block_masks(3, (4, 4), 0.5, 2, generator)


def test_the_average_by_hand():
    """tau .5, .75, then 1: what the teacher's weight is after three steps of a student that moves by one."""
    config = Data2VecConfig(layers=1, first_decay=0.5, last_decay=1.0, decay_steps=2)
    model = Data2Vec(config, vit())
    weight = model.tower.model.layers[0].mlp.fc1.weight
    slow = model.teacher.model.layers[0].mlp.fc1.weight
    with torch.no_grad():
        weight.fill_(0.0), slow.fill_(0.0)
    expected = 0.0
    for step, tau in enumerate((0.5, 0.75, 1.0)):
        with torch.no_grad():
            weight += 1.0
        model.follow(step)
        expected = tau * expected + (1 - tau) * (step + 1)
        assert model.decay(step) == tau and torch.allclose(slow, torch.tensor(expected))
    assert torch.equal(model.teacher.model.embeddings.cls_token, model.tower.model.embeddings.cls_token)


def test_embeddings_are_shared_and_the_teacher_has_no_gradient(pictures):
    model = Data2Vec(Data2VecConfig(layers=2), vit()).train()
    with torch.no_grad():
        model.tower.model.embeddings.position_embeddings += 1
    model.follow(0)
    theirs, ours = model.teacher.model.embeddings, model.tower.model.embeddings
    assert torch.equal(theirs.position_embeddings, ours.position_embeddings)
    regression_loss(model([pictures[0]], pictures[1]), 2.0).backward()
    assert all(weight.grad is None for weight in model.teacher.parameters())
    assert not model.teacher.training and model.tower.training
    silent = [
        name for name, weight in model.named_parameters() if weight.requires_grad and weight.grad is None
    ]
    # the last norm is after what is predicted from; it moves nothing here
    assert all("layernorm" in name and "layers" not in name for name in silent), silent


@pytest.mark.parametrize("layers", [1, 2, 3])
def test_targets_are_the_mean_of_normed_feed_forward_outputs(pictures, layers):
    """Computed literally: the output of a block minus what went into its feed-forward."""
    model = Data2Vec(Data2VecConfig(layers=layers), vit()).eval()
    tokens, _ = model.teacher.embed(pictures[0])
    found = []
    for layer in model.teacher.layers:
        block = layer.block
        middle = tokens + block.attention(block.layernorm_before(tokens))[0]
        tokens = middle + block.mlp(block.layernorm_after(middle))
        found.append((tokens - middle)[:, 1:])
    normed = [
        (a - a.mean(-1, keepdim=True)) / (a.var(-1, unbiased=False, keepdim=True) + 1e-5).sqrt()
        for a in found
    ]
    expected = sum(normed[-layers:]) / layers
    torch.testing.assert_close(model.targets([pictures[0]], 1), expected, atol=2e-4, rtol=1e-4)


def test_only_what_is_hidden_is_hidden(pictures):
    """What stands in hidden patches changes nothing but the targets; everything else does."""
    model = Data2Vec(Data2VecConfig(layers=1), vit()).eval()
    pixels, hidden = pictures
    other = pixels.clone()
    patch = int(torch.nonzero(hidden[0])[0])
    row, column = divmod(patch, 4)
    other[0, :, row * 4 : row * 4 + 4, column * 4 : column * 4 + 4] = 0
    a, b = model([pixels], hidden), model([other], hidden)
    assert torch.equal(a.predicted_PC, b.predicted_PC) and not torch.equal(a.target_PC, b.target_PC)
    seen = int(torch.nonzero(~hidden[0])[0])
    row, column = divmod(seen, 4)
    other[0, :, row * 4 : row * 4 + 4, column * 4 : column * 4 + 4] = 0
    assert not torch.equal(model([other], hidden).predicted_PC, a.predicted_PC)


def test_texts_are_read_by_the_same_model():
    model = Data2Vec(Data2VecConfig(layers=2, head_layers=2), bert()).eval()
    generator = torch.Generator().manual_seed(0)
    ids = torch.randint(4, 20, (2, 10), generator=generator)
    real = torch.arange(10) < torch.tensor([[10], [6]])
    hidden = span_masks(real, 0.35, 4, generator)
    found = model([ids, real], hidden)
    assert found.predicted_PC.shape == (int(hidden.sum()), 16) and len(model.head) == 3
    padded = ids.clone()
    padded[1, 6:] = 1
    torch.testing.assert_close(model([padded, real], hidden).predicted_PC, found.predicted_PC)


def test_the_loss_by_hand():
    """|1| with beta 2: 1/4; |4|: 4 - 1; the mean over two channels, summed over positions."""
    prediction = Prediction(torch.tensor([[1.0, 4.0]]), torch.zeros(1, 2))
    assert regression_loss(prediction, 2.0).item() == pytest.approx((0.25 + 3.0) / 2)
    rows = torch.tensor([[0.0, 2.0], [2.0, 2.0]])
    assert deviation(rows).item() == pytest.approx(0.5)
    assert explained(Prediction(rows, rows)).item() == pytest.approx(1.0)
    assert explained(Prediction(rows.mean(0).expand(2, 2), rows)).item() == pytest.approx(0.0)


def test_recording_leaves_nothing_behind():
    module = nn.Linear(2, 2)
    with recorded([module]) as found:
        module(torch.zeros(1, 2))
    module(torch.zeros(1, 2))
    assert len(found) == 1 and not module._forward_hooks


def test_masks_hide_what_they_say():
    generator = torch.Generator().manual_seed(3)
    masks = block_masks(20, (6, 8), 0.6, 4, generator)
    assert (masks.sum(1) == round(0.6 * 48)).all() and len({tuple(m.tolist()) for m in masks}) == 20
    # in blocks: far more hidden neighbours than a mask without structure would have
    grid = masks.view(20, 6, 8)
    together = (grid[:, :, 1:] & grid[:, :, :-1]).float().mean()
    assert together > 0.42 and masks.float().mean() == 0.6041666865348816
    real = torch.arange(40) < torch.tensor([[40], [1], [0]])
    spans = span_masks(real.repeat(50, 1), 0.35, 4, generator)
    assert not (spans & ~real.repeat(50, 1)).any() and spans[1::3, 0].all() and not spans[2::3].any()
    assert 0.2 < spans[0::3].float().mean() < 0.4


def test_encoder_equals_that_of_transformers():
    """Without relative positions and layer scale their encoder is a ViT whose keys have no bias."""
    torch.manual_seed(0)
    config = Data2VecVisionConfig(
        **VIT, layer_scale_init_value=0.0, use_absolute_position_embeddings=True, use_mask_token=True,
        use_mean_pooling=False, hidden_dropout_prob=0.0, attention_probs_dropout_prob=0.0, drop_path_rate=0.0,
    )  # fmt: skip
    theirs = Data2VecVisionModel(config, add_pooling_layer=False).eval()
    with torch.no_grad():
        for weight in theirs.parameters():
            weight.copy_(torch.randn(weight.shape) * 0.2)
    ours = vit().eval()
    weights = {name: torch.zeros_like(value) for name, value in ours.state_dict().items()}
    renamed = {
        "encoder.layer.": "layers.", ".attention.attention.query": ".attention.q_proj",
        ".attention.attention.key": ".attention.k_proj", ".attention.attention.value": ".attention.v_proj",
        ".attention.output.dense": ".attention.o_proj", ".intermediate.dense": ".mlp.fc1",
        ".output.dense": ".mlp.fc2",
    }  # fmt: skip
    for name, value in theirs.state_dict().items():
        for old, new in renamed.items():
            name = name.replace(old, new)
        if name != "embeddings.mask_token":
            assert weights[f"model.{name}"].shape == value.shape
            weights[f"model.{name}"] = value
    left = {name for name, value in weights.items() if not value.any()}
    assert all(name.endswith("k_proj.bias") for name in left), left
    ours.load_state_dict(weights)
    pixels = torch.rand(2, 3, 16, 16)
    hidden = block_masks(2, (4, 4), 0.5, 2, torch.Generator().manual_seed(1))
    expected = theirs(pixels, bool_masked_pos=hidden).last_hidden_state
    tokens, _ = ours.embed_hidden(pixels, hidden, theirs.embeddings.mask_token[0, 0])
    for layer in ours.layers:
        tokens = layer(tokens, None)
    found = ours.finish(tokens)
    torch.testing.assert_close(found.grid_BNC, expected[:, 1:], atol=1e-5, rtol=1e-4)


def test_what_does_not_fit_is_refused():
    with pytest.raises(ConfigError, match="average fewer"):
        Data2Vec(Data2VecConfig(layers=4), vit())
    with pytest.raises(ConfigError, match="choose a vit or bert tower"):
        Data2Vec(Data2VecConfig(layers=1), nn.Linear(2, 2))
