"""Rank correlations: scipy's numbers, coverage, intervals and tests."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from patchword.errors import DataError
from patchword.metrics import similarity
from patchword.metrics.similarity import agreement, difference, spearman

scipy_stats = pytest.importorskip("scipy.stats", reason="scipy comes with scikit-learn, of the extra dev")


@given(st.lists(st.tuples(st.integers(0, 5), st.integers(0, 5)), min_size=3, max_size=30))
@settings(max_examples=100, deadline=None)
def test_ties_and_all_it_is_scipys(pairs):
    one, other = np.array(pairs, float).T
    if len(set(one)) > 1 and len(set(other)) > 1:
        assert spearman(one, other) == pytest.approx(scipy_stats.spearmanr(one, other).statistic)
    else:
        assert np.isnan(spearman(one, other))


def test_resamples_are_correlations_of_drawn_pairs():
    random = np.random.default_rng(3)
    people, model = random.integers(0, 6, 30).astype(float), random.integers(0, 6, 30).astype(float)
    found = similarity._resampled(people, [model], 3, seed=5)[0]
    picks = np.random.default_rng(5).integers(30, size=(3, 30))
    np.testing.assert_allclose(found, [spearman(people[drawn], model[drawn]) for drawn in picks])


def test_unknown_pairs_are_counted_and_left_out():
    people = np.arange(20.0)
    model = people.copy()
    model[::4] = np.nan
    found = agreement(people, model)
    assert found.spearman == pytest.approx(1) and (found.covered, found.pairs) == (15, 20)
    assert found.interval.low == pytest.approx(1)


def test_the_interval_holds_the_value_and_narrows_with_pairs():
    random = np.random.default_rng(0)
    widths = []
    for count in (40, 640):
        people = random.normal(size=count)
        found = agreement(people, people + random.normal(size=count))
        assert found.interval.low < found.spearman < found.interval.high
        widths.append(found.interval.high - found.interval.low)
    assert widths[1] < widths[0] / 2


def test_a_difference_has_a_side_and_the_same_model_has_none():
    random = np.random.default_rng(1)
    people = random.normal(size=200)
    bad, good = people + 3 * random.normal(size=200), people + 0.3 * random.normal(size=200)
    gain = difference(people, bad, good)
    assert gain.value > 0.3 and gain.interval.low > 0 and gain.p < 0.01
    assert difference(people, good, bad).value == pytest.approx(-gain.value)
    same = difference(people, good, good)
    assert same.value == 0 and same.p == 1


def test_a_set_that_is_not_covered_is_said_with_numbers():
    model = np.full(30, np.nan)
    model[:3] = 1
    with pytest.raises(DataError, match="both words of 3 of 30 pairs; at least 5"):
        agreement(np.arange(30.0), model)
    with pytest.raises(DataError, match="know 3 of 30 pairs"):
        difference(np.arange(30.0), model, np.arange(30.0))
