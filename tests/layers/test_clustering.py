import pytest
import torch

from patchword.layers.clustering import kmeans, neighbour_values


def seeded(seed=0):
    return torch.Generator().manual_seed(seed)


def test_well_separated_groups_give_their_means_and_sizes():
    middles_MD = torch.tensor([[0.0, 0.0], [100.0, 0.0], [0.0, 100.0], [100.0, 100.0]])
    groups = [middle + torch.randn(20 + 5 * i, 2, generator=seeded(i)) for i, middle in enumerate(middles_MD)]
    centres_MD, sizes_M = kmeans(torch.cat(groups), 4, 10, seeded())
    order = (centres_MD / 50).round().mv(torch.tensor([1.0, 2.0])).argsort()
    torch.testing.assert_close(centres_MD[order], torch.stack([group.mean(dim=0) for group in groups]))
    assert sizes_M[order].tolist() == [20, 25, 30, 35]


def test_same_random_state_gives_the_same_centres():
    points_ND = torch.randn(200, 8, generator=seeded(1))
    first, second, other = (kmeans(points_ND, 10, 5, seeded(seed))[0] for seed in (3, 3, 4))
    assert torch.equal(first, second)
    assert not torch.equal(first, other)


def test_fewer_distinct_points_than_centres_leave_some_centres_empty():
    points_ND = torch.tensor([[0.0], [5.0]]).repeat(10, 1)
    centres_MD, sizes_M = kmeans(points_ND, 4, 5, seeded())
    assert sizes_M.sum() == 20
    assert set(centres_MD[sizes_M > 0].flatten().tolist()) == {0.0, 5.0}


def test_more_centres_than_points_are_refused():
    with pytest.raises(ValueError, match="2 points cannot have 3 centres"):
        kmeans(torch.zeros(2, 1), 3, 1, seeded())


def test_one_neighbour_gives_exactly_the_nearest_keys_value():
    keys_ND, values_ND = torch.randn(50, 6, generator=seeded(1)), torch.randn(50, 6, generator=seeded(2))
    centres_MD = keys_ND[[7, 31]] + 1e-3
    found_MD, nearest_MK = neighbour_values(centres_MD, keys_ND, values_ND, 1)
    assert torch.equal(found_MD, values_ND[[7, 31]])
    assert nearest_MK.tolist() == [[7], [31]]


def test_weights_fall_exponentially_with_distance():
    keys_ND, values_ND = torch.tensor([[0.0], [3.0], [50.0]]), torch.tensor([[1.0], [2.0], [9.0]])
    found_MD, _ = neighbour_values(torch.tensor([[1.0]]), keys_ND, values_ND, 2)
    near, far = torch.exp(torch.tensor(-1.0)), torch.exp(torch.tensor(-2.0))
    torch.testing.assert_close(found_MD, ((near + 2 * far) / (near + far)).view(1, 1))


def test_far_away_centres_still_get_finite_values():
    found_MD, _ = neighbour_values(torch.full((1, 4), 1e4), torch.randn(5, 4), torch.ones(5, 4), 3)
    torch.testing.assert_close(found_MD, torch.ones(1, 4))
