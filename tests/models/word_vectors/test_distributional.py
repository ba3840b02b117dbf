"""Bruni, Tran and Baroni: hand-counted weights, and the identities of mixing and fusing."""

import math

import pytest
import torch

from patchword.errors import ConfigError
from patchword.models.word_vectors.distributional import (
    DistributionalConfig,
    PairCounts,
    fuse,
    mix,
    truncated_svd,
    unit_rows,
    weighted,
)


def cosines(rows):
    unit = unit_rows(rows)
    return unit @ unit.t()


@pytest.fixture
def sides():
    generator = torch.Generator().manual_seed(0)
    text_WT, pictures_WP = (torch.randn(9, width, generator=generator) for width in (5, 4))
    return text_WT, pictures_WP


def test_weights_of_a_table_counted_by_hand():
    """n = [[4, 0, 1], [1, 3, 0], [0, 0, 1]], N = 10: PMI(0, 0) = log(4 * 10 / (5 * 5)), PMI(0, 2) = log(1 * 10 / (5 * 2)) = 0."""
    rows, columns = torch.tensor([0, 0, 1, 1, 2]), torch.tensor([0, 2, 0, 1, 2])
    counts = PairCounts(rows, columns, torch.tensor([4.0, 1, 1, 3, 1], dtype=torch.float64), (3, 3))
    ppmi = weighted(counts, "ppmi").to_dense()
    expected = torch.tensor([[math.log(1.6), 0, 0], [0, math.log(2.5), 0], [0, 0, math.log(5)]])
    torch.testing.assert_close(ppmi, expected)
    torch.testing.assert_close(weighted(counts, "lmi").to_dense(), expected * torch.tensor([[4.0], [3], [1]]))


def test_the_svd_is_the_exact_one_at_full_rank_for_dense_and_sparse():
    matrix = torch.randn(8, 6, generator=torch.Generator().manual_seed(1))
    for given in (matrix, matrix.to_sparse()):
        svd = truncated_svd(given, 6, torch.Generator().manual_seed(2))
        torch.testing.assert_close(
            (svd.left_WK * svd.singular_K) @ svd.right_XK.t(), matrix, atol=1e-4, rtol=0
        )
        torch.testing.assert_close(svd.singular_K, torch.linalg.svdvals(matrix), atol=1e-4, rtol=0)


def test_mixing_at_full_rank_is_the_identity_and_below_it_is_none(sides):
    generator = torch.Generator().manual_seed(3)
    text_WT, pictures_WP = mix(*sides, 9, generator)
    torch.testing.assert_close(text_WT, unit_rows(sides[0]), atol=1e-4, rtol=0)
    torch.testing.assert_close(pictures_WP, unit_rows(sides[1]), atol=1e-4, rtol=0)
    low_WT, _ = mix(*sides, 2, generator)
    assert (low_WT - unit_rows(sides[0])).abs().max() > 0.1


@pytest.mark.parametrize("fusion", ["features", "scores"])
def test_alpha_one_is_text_and_alpha_zero_pictures(sides, fusion):
    for alpha, side in ((1.0, sides[0]), (0.0, sides[1])):
        fused = fuse(DistributionalConfig(fusion=fusion, alpha=alpha), *sides, torch.Generator())
        torch.testing.assert_close(cosines(fused), cosines(side))


def test_the_score_level_is_the_weighted_mean_of_cosines(sides):
    fused = fuse(DistributionalConfig(fusion="scores", alpha=0.3), *sides, torch.Generator())
    torch.testing.assert_close(cosines(fused), 0.3 * cosines(sides[0]) + 0.7 * cosines(sides[1]))


def test_a_word_without_pictures_is_compared_by_its_text(sides):
    text_WT, pictures_WP = sides
    pictures_WP = pictures_WP.index_fill(0, torch.tensor([0, 1]), 0.0)
    fused = fuse(DistributionalConfig(alpha=0.5), text_WT, pictures_WP, torch.Generator())
    torch.testing.assert_close(cosines(fused)[0, 1], cosines(text_WT)[0, 1])


def test_a_rank_that_no_matrix_of_this_shape_has_is_refused(sides):
    with pytest.raises(ConfigError, match="rank 9 at most, found 12"):
        mix(*sides, 12, torch.Generator())
