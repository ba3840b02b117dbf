"""Metrics of generated pictures: closed forms, numbers by hand, scipy's own root, and what must rise or fall."""

import numpy as np
import pytest
import scipy.linalg
from hypothesis import given, settings
from hypothesis import strategies as st

from patchword.errors import DataError
from patchword.metrics import painting
from patchword.metrics.painting import Moments, frechet_distance, moments, neighbourhood


def cloud(count: int, width: int = 4, seed: int = 0, shift: float = 0.0, scale: float = 1.0) -> np.ndarray:
    return np.random.default_rng(seed).standard_normal((count, width)) * scale + shift


@given(st.lists(st.integers(1, 7), min_size=2, max_size=6))
@settings(max_examples=25, deadline=None)
def test_moments_of_batches_are_those_of_the_whole(sizes):
    whole = cloud(sum(sizes), seed=sum(sizes), shift=3)
    found = moments(np.split(whole, np.cumsum(sizes)[:-1]))
    assert found.count == len(whole) and np.allclose(found.mean_D, whole.mean(0))
    assert np.allclose(found.covariance_DD, np.cov(whole.T))


def test_the_frechet_distance_of_normals_has_its_closed_form():
    a = Moments(9, np.zeros(2), np.diag([1.0, 4.0]))
    b = Moments(9, np.array([3.0, 4.0]), np.diag([9.0, 1.0]))
    assert frechet_distance(a, b) == pytest.approx(25 + (1 - 3) ** 2 + (2 - 1) ** 2)


def test_the_frechet_distance_equals_the_matrix_root_of_scipy():
    a, b = moments([cloud(300, 12) @ cloud(12, 12, 1)]), moments([cloud(300, 12, 2) @ cloud(12, 12, 3)])
    root = scipy.linalg.sqrtm(a.covariance_DD @ b.covariance_DD).real
    expected = ((a.mean_D - b.mean_D) ** 2).sum() + np.trace(a.covariance_DD + b.covariance_DD - 2 * root)
    assert frechet_distance(a, b) == pytest.approx(expected, rel=1e-6)
    assert frechet_distance(a, a) == pytest.approx(0, abs=1e-6)


def test_it_warns_where_the_covariance_has_no_full_rank():
    few, many = moments([cloud(4)]), moments([cloud(50)])
    assert "4 pictures and 4 features" in painting.too_few(few, many)
    assert painting.too_few(many, many) is None
    with pytest.raises(DataError, match="1 picture has no covariance"):
        moments([cloud(1)])


def test_the_kernel_distance_is_unbiased_and_sees_a_shift():
    same = [
        painting.kernel_distance(cloud(400, seed=s), cloud(400, seed=s + 50), 1, 400)[0] for s in range(30)
    ]
    assert abs(np.mean(same)) < 3 * np.std(same) / 30**0.5
    assert painting.kernel_distance(cloud(400), cloud(400, seed=1, shift=1))[0] > 10 * np.std(same)
    a, b = np.array([[1.0], [2.0]]), np.array([[0.0], [3.0]])
    by_hand = (2 * (1 * 2 + 1) ** 3 + 2 * 1) / 2 - 2 * (1 + 64 + 1 + 343) / 4
    assert painting.kernel_distance(a, b, subsets=1)[0] == pytest.approx(by_hand)


def test_the_inception_score_counts_classes():
    assert painting.inception_score(np.tile(np.eye(5), (20, 1)), splits=2)[0] == pytest.approx(5)
    assert painting.inception_score(np.tile([0.2, 0.5, 0.3], (20, 1)))[0] == pytest.approx(1)
    with pytest.raises(DataError, match="3 pictures cannot be split into 10 parts"):
        painting.inception_score(np.ones((3, 2)) / 2)


def test_neighbourhoods_by_hand():
    """Real pictures at 0, 1, 2, 10; generated at 0.5 and further out; balls to the nearest neighbour."""
    real = np.array([[0.0], [1.0], [2.0], [10.0]])
    generated = np.array([[0.5], [30.0]])
    found = neighbourhood(generated, real, k=1)
    assert found.precision == 0.5  # 0.5 is within 1 of 0; 30 is farther than 8 from 10
    assert found.recall == 1.0  # the ball of 0.5 reaches 29.5
    assert found.density == pytest.approx(2 / 2)  # 0.5 lies in the balls of 0 and 1 (and not of 2)
    assert found.coverage == 0.5


def test_modes_that_are_dropped_cost_recall_and_noise_costs_precision():
    real = np.concatenate([cloud(200), cloud(200, seed=1, shift=20)])
    good = np.concatenate([cloud(200, seed=2), cloud(200, seed=3, shift=20)])
    dropped, noisy = cloud(400, seed=4), good + cloud(400, seed=5, scale=6)
    base = neighbourhood(good, real)
    assert neighbourhood(dropped, real).recall < base.recall - 0.3
    assert neighbourhood(dropped, real).coverage < base.coverage - 0.3
    assert abs(neighbourhood(dropped, real).precision - base.precision) < 0.1
    assert neighbourhood(noisy, real).precision < base.precision - 0.3
    with pytest.raises(DataError, match="3 real pictures have no 3 neighbours"):
        neighbourhood(good, real[:3])


def test_r_precision_tells_own_texts_from_others():
    texts = cloud(150, 16)
    texts /= np.linalg.norm(texts, axis=1, keepdims=True)
    pictures = texts + 0.3 * cloud(150, 16, 1)
    pictures /= np.linalg.norm(pictures, axis=1, keepdims=True)
    captions = [str(n) for n in range(150)]
    assert painting.r_precision(pictures, texts, captions).mean() > 0.5
    assert painting.r_precision(pictures, np.roll(texts, 1, 0), captions).mean() < 0.1
    with pytest.raises(DataError, match="all captions are the same"):
        painting.r_precision(pictures, texts, ["a"] * 150)


def test_the_bootstrap_interval_holds_the_mean():
    values = cloud(300, 1)[:, 0]
    low, high = painting.interval(lambda places: values[places].mean(), 300)
    assert low < values.mean() < high and high - low == pytest.approx(4 * values.std() / 300**0.5, rel=0.2)
