import pytest
import torch
from transformers import ResNetConfig, ResNetModel

from patchword.towers.layered import run_layers
from patchword.towers.resnet import ResNetTower, ResNetTowerConfig

RESNET = ResNetConfig(embedding_size=8, hidden_sizes=[8, 12, 16], depths=[1, 1, 2], layer_type="basic")


def test_resnet_is_the_composition_of_its_parts_and_equals_transformers():
    torch.manual_seed(0)
    tower = ResNetTower.from_architecture(RESNET).eval()
    pixels_B3HW = torch.randn(2, 3, 64, 48)
    features = tower(pixels_B3HW)
    map_BCHW = tower.model(pixels_B3HW).last_hidden_state
    assert features.hw == (4, 3) and tower.width == 16 and tower.depth == 3
    torch.testing.assert_close(features.grid_BNC, map_BCHW.flatten(2).transpose(1, 2))

    stored_BCHW = run_layers(tower.layers, *tower.embed(pixels_B3HW), stop=1)
    assert torch.equal(
        tower.finish(run_layers(tower.layers, stored_BCHW, None, start=1)).grid_BNC, features.grid_BNC
    )


@pytest.mark.parametrize("grid", [(14, 14), (1, 1), (2, 3)])
def test_the_grid_is_pooled_to_any_size_and_keeps_its_mean(grid):
    tower = ResNetTower(ResNetTowerConfig(architecture=RESNET.to_diff_dict(), grid=grid))
    pixels_B3HW = torch.randn(1, 3, 64, 64)
    features = tower(pixels_B3HW)
    assert features.hw == grid and features.grid_BNC.shape == (1, grid[0] * grid[1], 16)
    if grid == (1, 1):
        torch.testing.assert_close(features.grid_BNC[:, 0], tower.model(pixels_B3HW).pooler_output.flatten(1))


def test_frozen_batch_statistics_do_not_move():
    tower = ResNetTower.from_architecture(RESNET, trainable_from=2).train()
    before = {name: value.clone() for name, value in tower.state_dict().items()}
    tower(torch.randn(4, 3, 64, 64))
    moved = {name for name, value in tower.state_dict().items() if not torch.equal(value, before[name])}
    assert moved and all(name.startswith("model.encoder.stages.2.") for name in moved)


def test_published_weights_from_a_folder(tmp_path):
    theirs = ResNetModel(RESNET).eval()
    theirs.save_pretrained(tmp_path)
    tower = ResNetTower.from_pretrained(tmp_path, grid=(2, 2))
    pixels_B3HW = torch.randn(1, 3, 64, 64)
    pooled_BC22 = torch.nn.functional.adaptive_avg_pool2d(theirs(pixels_B3HW).last_hidden_state, 2)
    torch.testing.assert_close(tower(pixels_B3HW).grid_BNC, pooled_BC22.flatten(2).transpose(1, 2))
