import pytest
import torch
from transformers import SwinConfig, SwinModel, ViTConfig, ViTModel

from patchword.errors import ConfigError, ModelError
from patchword.towers.layered import by_value, run_layers
from patchword.towers.vit import SwinTower, SwinTowerConfig, VitTower, VitTowerConfig

VIT = ViTConfig(
    hidden_size=16,
    num_hidden_layers=3,
    num_attention_heads=2,
    intermediate_size=24,
    image_size=16,
    patch_size=4,
)
SWIN = SwinConfig(
    image_size=32, patch_size=4, embed_dim=8, depths=[2, 2], num_heads=[2, 4], window_size=4, mlp_ratio=2.0
)


@pytest.fixture
def pixels_B3HW():
    return torch.randn(2, 3, 16, 16, generator=torch.Generator().manual_seed(0))


def test_vit_is_the_composition_of_its_parts_and_equals_transformers(pixels_B3HW):
    torch.manual_seed(1)
    tower = VitTower.from_architecture(VIT)
    features = tower(pixels_B3HW)
    theirs_BNC = tower.model(pixels_B3HW).last_hidden_state
    torch.testing.assert_close(features.class_BC, theirs_BNC[:, 0], rtol=0, atol=1e-6)
    torch.testing.assert_close(features.grid_BNC, theirs_BNC[:, 1:], rtol=0, atol=1e-6)
    assert features.hw == (4, 4) and features.grid_BNC.shape == (2, 16, tower.width) and tower.depth == 3

    stored_BNC = run_layers(tower.layers, *tower.embed(pixels_B3HW), stop=2)
    resumed = tower.finish(run_layers(tower.layers, stored_BNC, None, start=2))
    assert torch.equal(resumed.grid_BNC, features.grid_BNC)


def test_a_vit_layer_comes_apart_so_that_single_rows_can_attend(pixels_B3HW):
    tower = VitTower.from_architecture(VIT)
    tokens_BNC, _ = tower.embed(pixels_B3HW)
    queries, keys, values = tower.layers[1].project(tokens_BNC)
    rows_BQC = tower.layers[1].attend(tokens_BNC[:, -3:], queries[:, :, -3:], keys, values)
    torch.testing.assert_close(rows_BQC, tower.layers[1](tokens_BNC)[:, -3:])


def test_masked_tokens_of_a_vit_layer_change_nothing(pixels_B3HW):
    tower = VitTower.from_architecture(VIT)
    tokens_BNC, _ = tower.embed(pixels_B3HW)
    mask_BN = torch.ones(2, 17, dtype=torch.bool)
    mask_BN[:, 9:] = False
    torch.testing.assert_close(
        tower.layers[0](tokens_BNC, mask_BN)[:, :9], tower.layers[0](tokens_BNC[:, :9])
    )


@pytest.mark.parametrize("depths", [[2, 2], [1, 3]])
def test_swin_equals_transformers(depths):
    torch.manual_seed(2)
    architecture = SwinConfig(**{**SWIN.to_dict(), "depths": depths})
    tower = SwinTower.from_architecture(architecture)
    pixels_B3HW = torch.randn(2, 3, 32, 32)
    features = tower(pixels_B3HW)
    torch.testing.assert_close(
        features.grid_BNC, tower.model(pixels_B3HW).last_hidden_state, rtol=0, atol=1e-6
    )
    assert tower.depth == 4 and tower.width == 16 and features.hw == (4, 4) and features.class_BC is None


def test_pictures_of_another_size_are_refused():
    with pytest.raises(ModelError, match=r"shape \(1, 3, 20, 16\) and expects \(B, 3, 16, 16\)"):
        VitTower.from_architecture(VIT)(torch.zeros(1, 3, 20, 16))


@pytest.mark.parametrize("first", [None, 0, 2])
def test_how_much_is_trained(first):
    tower = VitTower.from_architecture(VIT, trainable_from=first)
    trained = {name for name, parameter in tower.named_parameters() if parameter.requires_grad}
    everything = {name for name, _ in tower.named_parameters()}
    expected = {
        None: set(),
        0: everything,
        2: {name for name in everything if name.startswith(("model.layers.2.", "model.layernorm."))},
    }
    assert trained == expected[first]


def test_frozen_parts_rest_in_evaluation_mode():
    architecture = ViTConfig(
        **{**VIT.to_dict(), "hidden_dropout_prob": 0.5, "attention_probs_dropout_prob": 0.5}
    )
    pixels_B3HW = torch.randn(1, 3, 16, 16)
    frozen = VitTower.from_architecture(architecture).train()
    assert torch.equal(frozen(pixels_B3HW).grid_BNC, frozen(pixels_B3HW).grid_BNC)
    partly = VitTower.from_architecture(architecture, trainable_from=2).train()
    below_BNC = [run_layers(partly.layers, *partly.embed(pixels_B3HW), stop=2) for _ in range(2)]
    assert torch.equal(*below_BNC)
    assert not torch.equal(partly(pixels_B3HW).grid_BNC, partly(pixels_B3HW).grid_BNC)


def test_a_first_trained_layer_beyond_the_last_is_refused():
    with pytest.raises(ConfigError, match="trainable_from is 4, and the tower has 3 layers: choose 0 to 3"):
        VitTower.from_architecture(VIT, trainable_from=4)


def test_what_follows_the_last_layer_can_learn_alone(pixels_B3HW):
    tower = VitTower.from_architecture(VIT, trainable_from=3).train()
    tower(pixels_B3HW).grid_BNC.square().sum().backward()
    assert {name for name, parameter in tower.named_parameters() if parameter.grad is not None} == {
        "model.layernorm.weight",
        "model.layernorm.bias",
    }


def test_published_weights_from_a_folder(tmp_path, pixels_B3HW):
    theirs = ViTModel(VIT).eval()
    theirs.save_pretrained(tmp_path)
    tower = VitTower.from_pretrained(tmp_path)
    torch.testing.assert_close(
        tower(pixels_B3HW).grid_BNC, theirs(pixels_B3HW).last_hidden_state[:, 1:], rtol=0, atol=1e-6
    )

    copy = VitTower(VitTowerConfig.model_validate_json(by_value(tower).model_dump_json()))
    copy.load_state_dict(tower.state_dict())
    assert torch.equal(copy(pixels_B3HW).grid_BNC, tower(pixels_B3HW).grid_BNC)


def test_weights_that_would_start_random_are_refused(tmp_path):
    SwinModel(SWIN).save_pretrained(tmp_path / "swin")
    (tmp_path / "empty").mkdir()
    with pytest.raises(ModelError, match="no ViTModel weights could be read from"):
        VitTower.from_pretrained(tmp_path / "empty")

    shorter = ViTModel(ViTConfig(**{**VIT.to_dict(), "num_hidden_layers": 2}))
    shorter.config.num_hidden_layers = 3
    shorter.save_pretrained(tmp_path / "short")
    with pytest.raises(
        ModelError, match="has no weights for 16 parameters of ViTModel, the first is layers.2"
    ):
        VitTower.from_pretrained(tmp_path / "short")


def test_a_configuration_names_one_origin():
    with pytest.raises(ValueError, match="either source .* or architecture .*, and got neither"):
        VitTowerConfig()
    with pytest.raises(ValueError, match="and got both"):
        SwinTowerConfig(source="folder", architecture={})
