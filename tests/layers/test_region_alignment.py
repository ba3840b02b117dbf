import math
import warnings

import pytest
import torch
from torch.nn import functional as F

from patchword.errors import ConfigError, ModelError
from patchword.layers.codebook import Codebook
from patchword.layers.region_alignment import (
    PatchContrast,
    RegionAlignment,
    RegionAlignmentConfig,
    supervised_contrast,
)
from patchword.types import VisualFeatures

WIDTH, HEADS, E = 16, 2, 6


def alignment(words=5, **settings):
    codebook = Codebook([f"word {n}" for n in range(words)], torch.randn(words, E), "clip")
    return RegionAlignment(RegionAlignmentConfig(**settings), codebook, WIDTH, HEADS, 24, 0.0).eval()


def features(**given):
    return VisualFeatures(
        **({"grid_BNC": torch.randn(2, 6, 9), "aligned_BNE": torch.randn(2, 6, E), "hw": (2, 3)} | given)
    )


def test_contrast_by_hand():
    unit_AP = torch.tensor([[1.0, 0.0], [0.0, 1.0], [1.0, 0.0]])  # the third is the first's only positive
    log = math.log(math.exp(2.0) + math.exp(0.0))
    assert supervised_contrast(unit_AP, torch.tensor([4, 7, 4]), 0.5).item() == pytest.approx(log - 2.0)
    assert supervised_contrast(unit_AP, torch.tensor([4, 4, 5]), 0.5).item() == pytest.approx(
        (log + math.log(2.0)) / 2
    )


def test_patches_of_one_word_come_closer_and_others_part():
    torch.manual_seed(0)
    patches_BNC = torch.randn(2, 8, WIDTH, requires_grad=True)
    labels_BN = torch.tensor([[0, 1] * 4, [1, 0] * 4])
    contrast = PatchContrast(WIDTH, 8)
    optimiser = torch.optim.Adam([patches_BNC], lr=0.05)

    def mean_cosines():
        unit_AC = F.normalize(patches_BNC.detach().flatten(0, 1), dim=-1)
        cosines_AA, same_AA = unit_AC @ unit_AC.T, labels_BN.flatten()[:, None] == labels_BN.flatten()
        return cosines_AA[same_AA & ~torch.eye(16, dtype=torch.bool)].mean(), cosines_AA[~same_AA].mean()

    same_before, other_before = mean_cosines()
    for _ in range(40):
        optimiser.zero_grad()
        contrast(patches_BNC, labels_BN).backward()
        optimiser.step()
    same, other = mean_cosines()
    assert same > same_before + 0.1
    assert other < other_before


@pytest.mark.parametrize("labels", [[0, 1, 2, 3], [0, -1, -1, -1], [-1, -1, -1, -1]])
def test_without_positives_the_loss_is_zero_and_so_is_its_gradient(labels):
    patches_BNC = torch.randn(1, 4, WIDTH, requires_grad=True)
    loss = PatchContrast(WIDTH, 8)(patches_BNC, torch.tensor([labels]))
    loss.backward()
    assert loss.item() == 0
    assert torch.equal(patches_BNC.grad, torch.zeros_like(patches_BNC))


def test_anchors_are_bounded_and_drawn_by_their_own_generator():
    contrast, patches_BNC = PatchContrast(WIDTH, 8, anchors=10), torch.randn(4, 20, WIDTH)
    labels_BN = torch.randint(0, 2, (4, 20))
    losses = [
        contrast(patches_BNC, labels_BN, generator=torch.Generator().manual_seed(seed)).item()
        for seed in (1, 1, 2)
    ]
    assert losses[0] == losses[1] != losses[2]


def test_padded_patches_take_no_part_in_the_contrast():
    contrast, patches_BNC, labels_BN = (
        PatchContrast(WIDTH, 8),
        torch.randn(1, 6, WIDTH),
        torch.tensor([[0, 0, 1, 1, 0, 1]]),
    )
    mask_BN = torch.tensor([[True, True, True, True, False, False]])
    torch.testing.assert_close(
        contrast(patches_BNC, labels_BN, mask_BN), contrast(patches_BNC[:, :4], labels_BN[:, :4])
    )


@pytest.mark.parametrize("geometry", [False, True])
def test_padded_patches_change_no_real_one(geometry):
    part, seen = alignment(grid_geometry=geometry), features()
    x_BNC = torch.randn(2, 6, WIDTH)
    mask_BN = torch.tensor([[True] * 6, [True] * 4 + [False] * 2])
    changed = seen._replace(
        aligned_BNE=seen.aligned_BNE.masked_fill(~mask_BN[..., None], 9.0), mask_BN=mask_BN
    )
    found = [
        part(x_BNC, part.assign(each), (2, 3), mask_BN)[mask_BN]
        for each in (changed, seen._replace(mask_BN=mask_BN))
    ]
    torch.testing.assert_close(*found)


def test_a_global_token_looks_at_all_concepts():
    part, seen = alignment(grid_geometry=True), features()
    x_BNC = torch.randn(2, 7, WIDTH)
    found_BNC = part(x_BNC, part.assign(seen), (2, 3), None)
    assert found_BNC.shape == x_BNC.shape
    torch.testing.assert_close(found_BNC[:, :6], part(x_BNC[:, :6], part.assign(seen), (2, 3), None))


def test_evaluation_takes_the_nearest_word_and_training_draws():
    part, seen = alignment(assignment="gumbel", logit_scale=0.1), features(aligned_BNE=torch.randn(2, 6, E))
    assert torch.equal(part.assign(seen).concepts_BN, part.assign(seen).concepts_BN)
    part.train()
    drawn = {tuple(part.assign(seen).concepts_BN.flatten().tolist()) for _ in range(8)}
    assert len(drawn) > 1


def test_errors_say_what_is_missing():
    with pytest.raises(ModelError, match="the features hold none; set the tower's 'aligned'"):
        alignment().assign(features(aligned_BNE=None))
    with pytest.raises(ModelError, match="aligned patches are 7 wide and the codebook 6"):
        alignment().assign(features(aligned_BNE=torch.randn(2, 6, 7)))
    with pytest.raises(ModelError, match="top_k chooses words by the picture's own embedding"):
        alignment(top_k=2).assign(features())
    with pytest.raises(ModelError, match="grid_geometry needs patches that form a grid"):
        part = alignment(grid_geometry=True)
        part(torch.randn(2, 6, WIDTH), part.assign(features()), None, None)


def test_top_k_must_fit_the_codebook():
    with pytest.raises(ConfigError, match=r"top_k = 6 exceeds the codebook's 5 words"):
        alignment(top_k=6)
    with pytest.warns(UserWarning, match="keeps half of the codebook's 5 words or more"):
        alignment(top_k=3)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        alignment(top_k=2)
