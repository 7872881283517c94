"""The benchmarks' arithmetic."""

from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from bench.stats import Spread, percentile, ratio_by_round

samples = st.lists(st.floats(0.001, 1e6), min_size=1, max_size=50)


def test_percentiles_lie_between_neighbours() -> None:
    assert percentile([1, 2, 3, 4], 50) == 2.5
    assert percentile([4, 1, 3, 2], 100) == 4
    assert percentile([4, 1, 3, 2], 0) == 1
    assert percentile([7], 99) == 7
    assert percentile(list(range(101)), 95) == 95


@pytest.mark.parametrize(("values", "percent"), [([], 50), ([1.0], -1), ([1.0], 101)])
def test_what_makes_no_sense_is_refused(values: list[float], percent: float) -> None:
    with pytest.raises(ValueError, match="percent"):
        percentile(values, percent)


@given(samples)
def test_percentiles_grow_and_stay_within_the_samples(values: list[float]) -> None:
    found = [percentile(values, percent) for percent in (0, 50, 95, 99, 100)]
    assert found[0] == min(values)
    assert found[-1] == max(values)
    assert all(below <= above * (1 + 1e-9) for below, above in pairwise(found))


@given(samples)
def test_a_spread_is_ordered(values: list[float]) -> None:
    spread = Spread.of(values)
    assert spread.count == len(values)
    assert min(values) <= spread.p50 <= spread.p95 <= spread.p99 <= spread.max == max(values)


def test_the_ratio_ignores_what_disturbed_both() -> None:
    reference = [[1.0], [10.0], [1.0]]
    assert ratio_by_round([[3.0], [30.0], [3.0]], reference) == pytest.approx(3.0)


def test_the_ratio_needs_as_many_rounds_on_both_sides() -> None:
    with pytest.raises(ValueError, match="zip"):
        ratio_by_round([[1.0]], [[1.0], [2.0]])
