"""Estimates of waiting times, against lines whose future is known."""

import pytest

from topology.pace import Accuracy, Pace


def run(pace: Pace, slots: int, seconds: float, jobs: int) -> float:
    """`slots` busy all the time, each job `seconds` long; returns the time at the end."""
    now, finished = 0.0, 0
    pace.observe(now, slots, finished)
    for _ in range(jobs // slots):
        now, finished = now + seconds, finished + slots
        pace.observe(now, slots, finished)
        for _ in range(slots):
            pace.took(1.0)
    return now


def test_nothing_is_told_before_anything_has_ended() -> None:
    pace = Pace()
    assert pace.seconds(0, 0.0, 4) is None
    pace.observe(0.0, 4, 0)
    pace.observe(5.0, 4, 0)
    assert pace.seconds(0, 0.0, 4) is None


def test_a_full_tree_frees_a_slot_every_service_time_over_slots() -> None:
    pace = Pace()
    run(pace, slots=4, seconds=2.0, jobs=400)
    assert pace.seconds(0, 0.0, 4) == pytest.approx(0.5, rel=0.01)
    assert pace.seconds(7, 7.0, 4) == pytest.approx(4.0, rel=0.01)


def test_more_work_in_front_takes_longer() -> None:
    pace = Pace()
    run(pace, slots=4, seconds=2.0, jobs=400)
    assert pace.seconds(10, 30.0, 4) == pytest.approx(31 * 0.5, rel=0.01)


def test_an_idle_tree_does_not_look_slow() -> None:
    pace = Pace()
    now = run(pace, slots=4, seconds=2.0, jobs=40)
    pace.observe(now, 0, 40)
    pace.observe(now + 30, 4, 40)
    assert pace.seconds(0, 0.0, 4) == pytest.approx(0.5, rel=0.01)


def test_no_slots_no_estimate() -> None:
    pace = Pace()
    run(pace, slots=1, seconds=1.0, jobs=10)
    assert pace.seconds(0, 0.0, 0) is None


def test_the_error_is_that_of_what_was_told() -> None:
    accuracy = Accuracy()
    assert (accuracy.waited, accuracy.error) == (0.0, 0.0)
    accuracy.add(told=10.0, waited=8.0)
    accuracy.add(told=1.0, waited=2.0)
    assert (accuracy.waited, accuracy.error) == (5.0, 1.5)
