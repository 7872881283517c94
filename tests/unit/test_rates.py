"""Rates and errors from the absolute counters of nodes."""

import pytest

from api.tree.rates import ERROR_SECONDS, NodeRates, Rates
from tests.unit.api_site import node_state


def test_rates_are_those_of_the_last_seconds() -> None:
    rates = NodeRates()
    for second in range(20):
        tokens = 1000 + 10 * second
        if second > 10:
            tokens = 1100 + 40 * (second - 10)
        rates.observe({"n1": node_state("n1", tokens=tokens, finished=2 * second)}, float(second))
    assert rates.rates("n1") == Rates(tokens=40.0, jobs=2.0)
    assert rates.rates("n2") == Rates()


def test_a_new_process_counts_from_zero() -> None:
    rates = NodeRates()
    rates.observe({"n1": node_state("n1", tokens=500, failed=7)}, 0.0)
    rates.observe({"n1": node_state("n1", tokens=20, failed=1, pid=2)}, 1.0)
    assert rates.rates("n1").tokens == 20.0
    assert rates.errors("n1") == 1  # the seven were before


@pytest.mark.parametrize(("later", "count"), [(10.0, 3), (ERROR_SECONDS + 2, 0)])
def test_errors_are_remembered_for_a_while_also_of_nodes_that_are_gone(
    later: float, count: int
) -> None:
    rates = NodeRates()
    rates.observe({"n1": node_state("n1")}, 0.0)
    rates.observe({"n1": node_state("n1", failed=3)}, 1.0)
    rates.observe({}, later)
    assert (rates.errors("n1"), rates.all_errors()) == (count, count)
