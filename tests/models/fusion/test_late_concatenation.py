import pytest
import torch
from transformers import BertConfig, CLIPTextConfig, ResNetConfig, ViTConfig

from patchword.errors import ConfigError
from patchword.models.fusion.late_concatenation import LateConcatenation, LateConcatenationConfig
from patchword.towers.bert import BertTower
from patchword.towers.clip import ClipTextTower
from patchword.towers.resnet import ResNetTower
from patchword.towers.vit import VitTower

SIZES = dict(num_hidden_layers=1, num_attention_heads=2, intermediate_size=16)


def vit(first=None):
    return VitTower.from_architecture(ViTConfig(hidden_size=8, image_size=8, patch_size=4, **SIZES), first)


def bert(first=None):
    return BertTower.from_architecture(
        BertConfig(hidden_size=12, vocab_size=20, max_position_embeddings=9, **SIZES), first
    )


IMAGE = torch.randn(3, 3, 8, 8)
IDS_BL = torch.randint(3, 20, (3, 5))
MASK_BL = torch.arange(5) < torch.tensor([[5], [2], [4]])


def test_both_is_a_linear_map_of_the_two_class_tokens():
    model = LateConcatenation(LateConcatenationConfig(classes=4), vit(), bert())
    v_BC, t_BC = model.image_tower(IMAGE).class_BC, model.text_tower(IDS_BL, MASK_BL).tokens_BLC[:, 0]
    expected_BY = torch.cat([v_BC, t_BC], 1) @ model.head.weight.T + model.head.bias
    torch.testing.assert_close(model(IMAGE, IDS_BL, None, MASK_BL), expected_BY)
    assert torch.equal(
        model.fuse(model.lower(IMAGE, IDS_BL, None, MASK_BL)), model(IMAGE, IDS_BL, None, MASK_BL)
    )


@pytest.mark.parametrize(("inputs", "width"), [("image", 8), ("text", 12)])
def test_one_tower_alone_does_not_see_the_other(inputs, width):
    model = LateConcatenation(LateConcatenationConfig(classes=4, inputs=inputs), vit(), bert())
    assert model.head.in_features == width
    alone_BY = model(IMAGE if inputs == "image" else None, IDS_BL if inputs == "text" else None)
    assert torch.equal(model(IMAGE, IDS_BL), alone_BY)
    names = {name.split(".")[0] for name, _ in model.named_parameters()}
    assert names == {"head", f"{inputs}_tower"}


def test_frozen_towers_make_a_probe_and_trained_ones_full_training():
    probe = LateConcatenation(LateConcatenationConfig(classes=4), vit(), bert())
    probe(IMAGE, IDS_BL).sum().backward()
    assert {name for name, parameter in probe.named_parameters() if parameter.grad is not None} == {
        "head.weight",
        "head.bias",
    }
    full = LateConcatenation(LateConcatenationConfig(classes=4), vit(0), bert(0))
    full(IMAGE, IDS_BL, torch.zeros_like(IDS_BL)).square().sum().backward()
    assert all(parameter.grad is not None for parameter in full.parameters())


def test_towers_without_a_class_token_give_their_mean_patch_and_clip_its_pooled_token():
    resnet = ResNetTower.from_architecture(
        ResNetConfig(embedding_size=8, hidden_sizes=[8, 12], depths=[1, 1], layer_type="basic")
    )
    text = ClipTextTower.from_architecture(
        CLIPTextConfig(
            hidden_size=8,
            projection_dim=6,
            vocab_size=20,
            max_position_embeddings=9,
            eos_token_id=19,
            bos_token_id=0,
            **SIZES,
        )
    )
    model = LateConcatenation(LateConcatenationConfig(classes=4), resnet, text)
    ids_BL = torch.tensor([[0, 5, 19], [0, 19, 19]])
    summary = model.lower(torch.randn(2, 3, 32, 32), ids_BL)
    assert summary.image_BC.shape == (2, 12) and summary.text_BC.shape == (2, 6)
    assert model.fuse(summary).shape == (2, 4)


def test_a_missing_tower_is_named():
    with pytest.raises(
        ConfigError,
        match=r"inputs = 'both' reads from the text tower, and there is none: add a \[text_tower\] section",
    ):
        LateConcatenation(LateConcatenationConfig(classes=4), vit(), None)


@pytest.mark.parametrize("left", [0, 1, 2])
def test_it_goes_on_from_tokens_inside_the_towers(left):
    sizes = {**SIZES, "num_hidden_layers": 2}
    vision = VitTower.from_architecture(ViTConfig(hidden_size=8, image_size=8, patch_size=4, **sizes))
    text = BertTower.from_architecture(
        BertConfig(hidden_size=12, vocab_size=20, max_position_embeddings=9, **sizes)
    )
    model = LateConcatenation(LateConcatenationConfig(classes=4), vision, text)
    image_BNC, _ = vision.embed(IMAGE)
    text_BLC, mask_BL = text.embed(IDS_BL, MASK_BL)
    for layer in vision.layers[: 2 - left]:
        image_BNC = layer(image_BNC)
    for layer in text.layers[: 2 - left]:
        text_BLC = layer(text_BLC, mask_BL)
    resumed = model.fuse(model.resume(image_BNC, text_BLC, mask_BL, left))
    torch.testing.assert_close(resumed, model(IMAGE, IDS_BL, None, MASK_BL))


def test_a_missing_side_counts_as_zero():
    model = LateConcatenation(LateConcatenationConfig(classes=4), vit(), bert())
    summary = model.lower(IMAGE, IDS_BL, None, MASK_BL)
    has_image_B, has_text_B = torch.tensor([True, False, True]), torch.tensor([True, True, False])
    logits_BY = model.fuse(summary, has_image_B, has_text_B)
    weight, bias = model.head.weight, model.head.bias
    torch.testing.assert_close(logits_BY[0], model.fuse(summary)[0])
    torch.testing.assert_close(logits_BY[1], weight[:, 8:] @ summary.text_BC[1] + bias)
    torch.testing.assert_close(logits_BY[2], weight[:, :8] @ summary.image_BC[2] + bias)
