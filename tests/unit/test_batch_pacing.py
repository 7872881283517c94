"""How many lines of batches run at a time."""

from itertools import pairwise

import pytest

from api.batches.pacing import SPACING, STATE_SECONDS, LinesInFlight, load, most_lines
from api.batches.results import PartFile, Result, index
from tests.unit.api_site import node_state


@pytest.mark.parametrize(
    ("slots", "busy", "mine", "most"),
    [
        (0, 0, 0, 1),  # no tree yet: one line finds out
        (1, 0, 0, 1),
        (2, 0, 0, 1),
        (8, 0, 0, 7),
        (8, 7, 7, 7),
        (8, 5, 3, 5),  # two of others
        (8, 40, 3, 1),
        (256, 0, 0, 224),
    ],
)
def test_some_slots_stay_free(slots: int, busy: int, mine: int, most: int) -> None:
    assert most_lines(slots, busy, mine) == most


def test_only_the_models_nodes_that_serve_count() -> None:
    states = {
        "n1": node_state("n1", slots=4, running=2, held=1),
        "n2": node_state("n2", slots=4, model="big"),
        "n3": node_state("n3", slots=4, status="drained"),
    }
    assert load(states, "tiny") == (4, 3)


def test_lines_that_began_together_do_not_stay_together() -> None:
    """Seven of them at a time, each of a second: their starts spread over most of it."""
    lines, seconds, most = LinesInFlight(), 1.0, 7
    ends: list[float] = []
    starts: list[float] = []
    now = 0.0
    while len(starts) < 20 * most:
        if lines.count < most and now >= lines.next_start:
            lines.started(now)
            starts.append(now)
            ends.append(now + seconds)
        while ends and ends[0] <= now:
            lines.ended(ends.pop(0))
        now += 0.001
    gaps = [after - before for before, after in pairwise(starts[-3 * most :])]
    assert min(gaps) >= SPACING[1] - 0.001
    assert len(starts) / now > 0.9 * most / seconds  # and no slot idles


def test_lines_that_end_fast_start_as_fast() -> None:
    lines = LinesInFlight()
    assert lines.spacing() == SPACING[0]
    for number in range(100):
        lines.started(number * 0.001)
        lines.ended(number * 0.001)
    assert lines.spacing() == SPACING[0]
    lines.ended(1000.0)
    assert lines.spacing() == SPACING[1]


def test_lines_that_have_just_ended_are_not_anothers() -> None:
    """A node tells its state a little later: until then it counts them."""
    lines = LinesInFlight()
    for _ in range(7):
        lines.started(10.0)
    for _ in range(7):
        lines.ended(10.1)
    assert most_lines(8, busy=7, mine=lines.lately(10.2)) == 7
    assert lines.lately(10.2 + 2 * STATE_SECONDS) == 0
    assert most_lines(8, busy=7, mine=0) == 1  # by then they are


def test_a_torn_result_is_none(tmp_path) -> None:  # type: ignore[no-untyped-def]
    part = PartFile(tmp_path / "x" / "part")
    part.open()
    part.write(Result(1, "output", b'{"a": 1}'))
    part.write(Result(2, "error", b'{"b": 2}'))
    part.close()
    path = tmp_path / "x" / "part"
    path.write_bytes(path.read_bytes()[:-3])
    assert set(index([path])) == {1}
