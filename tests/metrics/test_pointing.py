"""Pointing, mass and curves on grids that can be worked out by hand."""

import numpy as np
import pytest

from patchword.errors import DataError
from patchword.metrics.pointing import (
    area,
    box_region,
    centre_map,
    hit,
    mask_region,
    mass,
    random_map,
    removal_masks,
    uniform_map,
)

WHOLE = (0, 0, 40, 40)
"""A picture of 40 pixels under a grid of 2 rows and 2 columns: every cell is 20 pixels wide."""


def test_a_box_covers_cells_by_its_area():
    region = box_region([(0, 0, 30, 20)], WHOLE, (2, 2))
    assert region.covered_hw.tolist() == [[1, 0.5], [0, 0]]
    assert region.on_hw.tolist() == [[True, False], [False, False]], (
        "the centre of the second cell lies on its edge"
    )


def test_boxes_that_overlap_count_once():
    one, two = (0, 0, 20, 20), (10, 0, 20, 20)
    assert box_region([one, two], WHOLE, (2, 2)).covered_hw.tolist() == [[1, 0], [0, 0]]


def test_a_box_without_any_centre_is_hit_in_the_cell_that_holds_most_of_it():
    small = (22, 2, 26, 6)
    region = box_region([small], WHOLE, (2, 2))
    assert region.on_hw.tolist() == [[False, True], [False, False]]
    assert 0 < region.covered_hw[0, 1] < 0.1


def test_only_the_seen_part_of_the_picture_counts():
    right_half = (20, 0, 40, 40)
    assert box_region([(20, 0, 30, 40)], right_half, (2, 2)).covered_hw.tolist() == [[1, 0], [1, 0]]
    assert not box_region([(0, 0, 10, 10)], right_half, (2, 2)).on_hw.any()


def test_a_mask_is_exact():
    mask_HW = np.zeros((40, 40), bool)
    mask_HW[20:, 20:] = True
    mask_HW[20:30, 20:30] = False
    region = mask_region(mask_HW[None], WHOLE, (2, 2))
    assert region.covered_hw.tolist() == [[0, 0], [0, 0.75]]


MAP = np.array([[0.5, 0.1], [0.2, 0.2]], dtype=np.float32)


def test_hits_and_mass_by_hand():
    region = box_region([(0, 0, 30, 20)], WHOLE, (2, 2))
    assert hit(MAP, region) == 1
    assert hit(MAP[::-1], region) == 0
    assert mass(MAP, region) == pytest.approx(0.5 + 0.1 / 2)
    assert mass(4 * MAP, region) == pytest.approx(mass(MAP, region)), "the scale of a map means nothing"


def test_cells_that_are_equally_strong_share_the_hit():
    region = box_region([(0, 0, 20, 20)], WHOLE, (2, 2))
    assert hit(uniform_map((2, 2)), region) == 1 / 4
    assert mass(np.zeros((2, 2)), region) == 1 / 4, "a map of zeros says as much as an even one"


@pytest.mark.parametrize(
    ("map_hw", "says"),
    [
        (np.ones((3, 2)), r"\(3, 2\) cells"),
        (np.array([[1, -1], [0, 0]]), "negative"),
        (np.array([[1, np.nan], [0, 0]]), "not finite"),
    ],
)
def test_maps_that_cannot_be_measured_are_refused(map_hw, says):
    with pytest.raises(DataError, match=says):
        mass(map_hw, box_region([(0, 0, 20, 20)], WHOLE, (2, 2)))


def test_a_region_needs_an_object_and_a_seen_part():
    with pytest.raises(DataError, match="at least one"):
        box_region([], WHOLE, (2, 2))
    with pytest.raises(DataError, match="seen part"):
        box_region([(0, 0, 1, 1)], (0, 0, 0, 40), (2, 2))


def test_cells_go_in_the_order_of_the_map_and_one_stays():
    deletion_SN, insertion_SN = removal_masks(MAP, (0, 0.25, 0.5, 1))
    assert deletion_SN.tolist() == [
        [True, True, True, True],
        [False, True, True, True],
        [False, True, False, True],
        [False, True, False, False],
    ]
    assert insertion_SN.tolist() == [
        [True, False, False, False],
        [True, False, False, False],
        [True, False, True, False],
        [True, True, True, True],
    ]


def test_area_is_the_mean_height():
    assert area((0, 0.5, 1), (1, 0, 0)) == pytest.approx(0.25)
    assert area((0, 1), (0.3, 0.3)) == pytest.approx(0.3)
    with pytest.raises(DataError, match="rising"):
        area((0, 0), (1, 1))


def test_baselines_are_maps():
    centre = centre_map((5, 7))
    assert np.unravel_index(centre.argmax(), centre.shape) == (2, 3)
    drawn = random_map((5, 7), np.random.default_rng(0))
    for map_hw in (centre, uniform_map((5, 7)), drawn):
        assert map_hw.min() >= 0 and map_hw.sum() == pytest.approx(1, abs=1e-6)
    assert len(np.unique(drawn)) == drawn.size
