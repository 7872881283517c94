"""Whether somebody waited beside a free slot."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from bench.occupancy import Times, most_at_once, waited_beside_a_free_slot


def request(entered: float, started: float, ended: float, node: str = "n1") -> Times:
    return Times(entered, started, ended, node)


def test_nobody_waits() -> None:
    assert waited_beside_a_free_slot([request(0, 0, 1), request(0, 0, 1, "n2")], slots=2) == [0, 0]


def test_waiting_while_all_slots_are_busy_is_right() -> None:
    first, second = request(0, 0, 1), request(0, 1, 2)
    assert waited_beside_a_free_slot([first, second], slots=1) == [0, 0]


def test_waiting_beside_a_free_slot_is_measured() -> None:
    first, second = request(0, 0, 1), request(0, 1, 2)
    assert waited_beside_a_free_slot([first, second], slots=2) == [0, 1]


def test_only_the_part_beside_a_free_slot_counts() -> None:
    busy, late = request(0, 0, 3), request(1, 5, 6)
    assert waited_beside_a_free_slot([busy, late], slots=1) == [0, 2]


def test_waiting_before_anything_runs_is_waiting() -> None:
    assert waited_beside_a_free_slot([request(0, 4, 5)], slots=1) == [4]


def test_no_request_is_no_wait() -> None:
    assert waited_beside_a_free_slot([], slots=3) == []


def test_the_most_at_once_a_node() -> None:
    requests = [request(0, 0, 2), request(0, 1, 3), request(0, 2, 4), request(0, 0, 9, "n2")]
    assert most_at_once(requests) == {"n1": 2, "n2": 1}


times = st.lists(st.integers(0, 20), min_size=3, max_size=3, unique=True).map(sorted)


@given(st.lists(times, min_size=1, max_size=12), st.integers(1, 4))
def test_against_a_clock_that_ticks(raw: list[list[int]], slots: int) -> None:
    requests = [request(*each) for each in raw]
    ticks = [0] * len(requests)
    for tick in range(20):
        free = sum(each.started <= tick < each.ended for each in requests) < slots
        for index, each in enumerate(requests):
            ticks[index] += bool(free and each.entered <= tick < each.started)
    assert waited_beside_a_free_slot(requests, slots) == pytest.approx(ticks)
