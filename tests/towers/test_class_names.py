"""Cells of an ImageNet tower in the space of sentences, by the names of their classes (ConSE)."""

import pytest
import torch
import torch.nn.functional as F
from torch.testing import assert_close

from patchword.errors import ConfigError, ModelError
from patchword.towers.efficientnet_lite import CLASSES, TOP_CLASSES, ClassLogits, EfficientNetLiteTower
from patchword.towers.settings import EfficientNetLiteConfig

WIDTH = 12


def config(**changes):
    base = {"kind": "efficientnet-lite0", "weights": "none", "aligned": "class_names", "names_width": WIDTH}
    return EfficientNetLiteConfig(**(base | changes))


def built(**changes):
    torch.manual_seed(0)
    tower = EfficientNetLiteTower(config(**changes))
    tower.set_names(torch.randn(CLASSES, WIDTH))
    return tower


def pixels(side=64):
    return torch.randn(2, 3, side, side, generator=torch.Generator().manual_seed(1))


def test_a_cell_that_is_sure_of_one_class_lies_at_its_name():
    tower = built(gate=0.0)
    cells_BNK = torch.zeros(1, 3, CLASSES)
    for cell, number in enumerate((7, 281, 967)):
        cells_BNK[0, cell, number] = 100.0
    aligned_BNE = tower.align(ClassLogits(cells_BNK.mean(1), cells_BNK))
    assert_close(aligned_BNE[0], tower.names_KE[[7, 281, 967]], atol=1e-5, rtol=0)


def test_a_cell_between_classes_lies_between_their_names_by_hand():
    tower = built(gate=0.0)
    cells_BNK = torch.full((1, 1, CLASSES), -1000.0)
    cells_BNK[0, 0, 3], cells_BNK[0, 0, 4] = torch.log(torch.tensor(0.75)), torch.log(torch.tensor(0.25))
    expected_E = F.normalize(0.75 * tower.names_KE[3] + 0.25 * tower.names_KE[4], dim=0)
    assert_close(tower.align(ClassLogits(cells_BNK.mean(1), cells_BNK))[0, 0], expected_E, atol=1e-5, rtol=0)


def test_the_whole_picture_speaks_in_every_cell_by_the_gate():
    cells_BNK = torch.randn(1, 4, CLASSES)
    logits = ClassLogits(cells_BNK.mean(1), cells_BNK)
    aligned_BNE = built(gate=1.0).align(logits)
    assert_close(aligned_BNE, aligned_BNE[:, :1].expand_as(aligned_BNE))
    assert not torch.allclose(built(gate=0.0).align(logits), aligned_BNE)


@pytest.mark.parametrize("grid", ["head", "last_block"])
def test_features_hold_a_place_of_length_one_for_every_cell(grid):
    tower = built(grid=grid).eval()
    features = tower(pixels())
    assert features.aligned_BNE.shape == (2, 4, WIDTH)
    assert_close(features.aligned_BNE.norm(dim=-1), torch.ones(2, 4))
    looked, logits = tower.look(pixels())
    assert_close(looked.aligned_BNE, features.aligned_BNE)
    assert_close(logits.picture_BK, logits.cells_BNK.mean(1))
    assert TOP_CLASSES <= CLASSES


@pytest.mark.parametrize("grid", ["head", "last_block"])
def test_training_blocks_moves_the_grid_and_leaves_the_classes(grid):
    tower = built(grid=grid, trainable_from=13, statistics="stored").train()
    before, classes = tower.look(pixels())
    learning = [parameter for parameter in tower.parameters() if parameter.requires_grad]
    optimiser = torch.optim.SGD(learning, lr=0.5)
    before.grid_BNC.square().mean().backward()
    optimiser.step()
    after, again = tower.look(pixels())
    assert not torch.allclose(after.grid_BNC, before.grid_BNC)
    assert torch.equal(again.cells_BNK, classes.cells_BNK)
    assert torch.equal(after.aligned_BNE, before.aligned_BNE)
    with pytest.raises(ModelError, match="use look"):
        tower.classify(after)


def test_stored_tokens_go_on_to_grid_and_classes():
    tower = built(trainable_from=13).eval()
    tokens, mask = tower.embed(pixels())
    for layer in tower.layers[:13]:
        tokens = layer(tokens, mask)
    resumed, whole = tower.resume(tokens, mask, 13), tower(pixels())
    assert_close(resumed.grid_BNC, whole.grid_BNC)
    assert_close(resumed.aligned_BNE, whole.aligned_BNE)
    with pytest.raises(ModelError, match="go into block 14"):
        tower.resume(tower.layers[13](tokens, mask), mask, 14)


def test_names_need_the_classifier():
    with pytest.raises(ConfigError, match="classifier = true"):
        EfficientNetLiteTower(config(classifier=False))


def test_names_of_another_width_are_refused():
    with pytest.raises(ModelError, match="is expected"):
        built().set_names(torch.randn(CLASSES, WIDTH + 1))
