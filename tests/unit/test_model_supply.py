"""What a model's nodes offer is counted as their states come."""

import time
from unittest import mock

from hypothesis import given
from hypothesis import strategies as st

from broker.model_supply import supply_of
from broker.node_states import LOOK_SECONDS, SILENT_SECONDS, NodeStates
from tests.unit.api_site import node_state

STATES = st.builds(
    node_state,
    name=st.sampled_from(["root", "n1", "n2"]),
    model=st.sampled_from(["tiny", "big"]),
    engine=st.sampled_from(["none", "echo"]),
    status=st.sampled_from(["idle", "busy", "starting", "failed"]),
    slots=st.integers(0, 9),
    running=st.integers(0, 12),
    held=st.integers(0, 9),
    pid=st.integers(1, 2),
    tasks=st.sampled_from([("generate",), ("embed", "generate"), ()]),
)
STEPS = st.one_of(STATES, st.sampled_from(["root", "n1", "n2"]), st.none())


@given(st.lists(STEPS, max_size=20))
def test_it_is_what_adding_up_gives(steps: list[object]) -> None:
    states = NodeStates()
    now = time.monotonic()
    with mock.patch("broker.node_states.time.monotonic", lambda: now):
        for step in steps:
            if step is None:
                now += SILENT_SECONDS + LOOK_SECONDS  # all fall silent
            elif isinstance(step, str):
                states.remove(step)
            else:
                states.add(step)  # type: ignore[arg-type]
            for model in ("tiny", "big"):
                assert states.supply(model) == supply_of(model, states.recent().values())
