"""How many lines of batches run at a time."""

import pytest

from api.batches.pacing import load, most_lines
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


def test_a_torn_result_is_none(tmp_path) -> None:  # type: ignore[no-untyped-def]
    part = PartFile(tmp_path / "x" / "part")
    part.open()
    part.write(Result(1, "output", b'{"a": 1}'))
    part.write(Result(2, "error", b'{"b": 2}'))
    part.close()
    path = tmp_path / "x" / "part"
    path.write_bytes(path.read_bytes()[:-3])
    assert set(index([path])) == {1}
