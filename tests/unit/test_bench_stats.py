"""The benchmarks' arithmetic."""

from itertools import pairwise

from hypothesis import given
from hypothesis import strategies as st

from bench.stats import Spread

ROUNDING = 1 + 1e-9


def test_percentiles_lie_between_neighbours() -> None:
    assert Spread.of([4, 1, 3, 2]).p50 == 2.5
    assert Spread.of(list(range(101))) == Spread(101, 50, 50, 95, 99, 100)
    assert Spread.of([0.007], 1000) == Spread(1, 7, 7, 7, 7, 7)


@given(st.lists(st.floats(0.001, 1e6), min_size=1, max_size=50))
def test_a_spread_is_ordered_and_stays_within_the_samples(values: list[float]) -> None:
    spread = Spread.of(values)
    assert (spread.count, spread.max) == (len(values), max(values))
    ordered = [min(values), spread.p50, spread.p95, spread.p99, spread.max]
    for below, above in pairwise(ordered):
        assert below <= above * ROUNDING
