"""Whatever arrives from the broker is bounded: nothing of it ends a node, a reader or a command."""

import asyncio
import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from broker.encoding import decode, encode
from broker.errors import DecodeError
from broker.malformed import decode_frames, inconsistency
from broker.management import read_edges
from broker.node_state import NodeState
from broker.tree import tree
from broker.wire import Capacity, Failed, Finished, Frames, Job, Start
from cli.commands.tree import draw
from tests.unit.api_site import node_state
from tests.unit.cluster import Cluster, read, until
from topology import names
from topology.dispatch import HoldHigh
from topology.wait_estimator import WaitEstimator

GOLDEN = Path(__file__).parent.parent / "golden"
NUMBERS = [
    0,
    1,
    -1,
    7,
    100_000,
    100_001,
    2**53,
    2**63,
    10**12,
    10**400,
    0.5,
    -0.5,
    1e-320,
    1e9,
    1e308,
]
TEXTS = [
    "",
    "n1",
    "root",
    "ghost",
    "²",
    "x" * 255,
    "x" * 300,
    "模" * 90,
    "[bold]",
    "\x1b[2J",
    "a\nb",
]
values = st.recursive(
    st.sampled_from([*NUMBERS, *TEXTS, None, True]),
    lambda inner: (
        st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from(TEXTS), inner, max_size=3)
    ),
    max_leaves=5,
)
CONTROLS = (
    "capacity",
    "ancestors",
    "supersede",
    "continue",
    "cancel",
    "leave",
    "adopt",
    "refused",
    "attach",
)


def example(name: str) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((GOLDEN / f"{name}.json").read_text())
    return found


@st.composite
def mutated(draw: st.DrawFn, name: str) -> bytes:
    """The golden message of that name with some of its fields replaced."""
    message = example(name)
    changed = draw(
        st.dictionaries(st.sampled_from(sorted(message)), values, min_size=1, max_size=4)
    )
    return json.dumps({**message, **changed}).encode()


@contextmanager
def nothing_raised() -> Iterator[None]:
    """Fails if a callback of the running loop raised."""
    raised: list[dict[str, Any]] = []
    asyncio.get_running_loop().set_exception_handler(lambda _loop, context: raised.append(context))
    yield
    assert not raised, raised


async def receive(controls: list[bytes], jobs: list[bytes]) -> None:
    """A root and a node get all these messages; both still serve, or were moved or drained."""
    async with Cluster(HoldHigh) as cluster:
        with nothing_raised():
            await cluster.add("root")
            await cluster.add("n1", "root", slots=2)
            for body in controls:
                for node in ("root", "n1"):
                    cluster.broker.put("", names.inbox(node), body)
            for body in jobs:
                cluster.broker.put("", names.node("root"), body)
            await asyncio.sleep(0.06)  # the line is described to its readers after 50 ms
            for node in cluster.nodes.values():
                node.jobs.sweep()
                decode(encode(node.state()), NodeState)
            assert not any(life.done() for life in cluster._lives.values())


@settings(max_examples=60, deadline=None)
@given(
    st.lists(st.sampled_from(CONTROLS).flatmap(mutated), max_size=20),
    st.lists(mutated("job"), max_size=5),
)
def test_no_message_ends_a_node(controls: list[bytes], jobs: list[bytes]) -> None:
    asyncio.run(receive(controls, jobs))


async def hear(messages: list[bytes], states: list[bytes]) -> None:
    async with Cluster() as cluster:
        with nothing_raised():
            await cluster.add("root")
            await cluster.add("n1", "root")
            stream = await cluster.ask("7d1f0c")
            for body in messages:
                cluster.broker.put("", reply_queue(cluster), body)
            for body in states:
                cluster.broker.put(names.EVENTS_EXCHANGE, names.state_key("n1"), body)
            await asyncio.sleep(0.01)
            assert set(cluster.client.nodes()) <= {"root", "n1"}
            stream.read_now()


def reply_queue(cluster: Cluster) -> str:
    return next(name for name in cluster.broker.queues if name.startswith(names.REPLY_PREFIX))


@st.composite
def mutated_frames(draw: st.DrawFn) -> bytes:
    chosen = draw(st.lists(st.sampled_from(example("frames")["frames"]), max_size=6))
    frames = []
    for frame in chosen:
        changed = draw(st.dictionaries(st.sampled_from(sorted(frame)), values, max_size=3))
        frames.append({**frame, **changed})
    return json.dumps({"frames": frames}).encode()


@settings(max_examples=60, deadline=None)
@given(st.lists(mutated_frames(), max_size=5), st.lists(mutated("state"), max_size=5))
def test_no_message_ends_a_reader(messages: list[bytes], states: list[bytes]) -> None:
    asyncio.run(hear(messages, states))


@settings(max_examples=100, deadline=None)
@given(
    st.lists(mutated("state"), max_size=3), st.lists(st.sampled_from(TEXTS), min_size=4, max_size=4)
)
def test_no_state_and_no_name_ends_the_drawing_of_the_tree(
    bodies: list[bytes], odd: list[str]
) -> None:
    states = {}
    for body in bodies:
        try:
            state = decode(body, NodeState)
        except DecodeError:
            continue
        states[state.name] = state
    prefix = names.NODE_PREFIX
    bindings: list[dict[str, object]] = [
        {"source": names.JOBS_EXCHANGE, "destination": prefix + odd[0], "routing_key": odd[1]},
        {"source": prefix + odd[0], "destination": prefix + odd[2], "routing_key": odd[2]},
    ]
    queues: list[dict[str, object]] = [{"name": prefix + name} for name in odd]
    drawn = tree(
        read_edges(bindings, queues), states, {}, now=1e9, clock_differences={"n1": 7200.0}
    )
    nodes = {node["name"]: node for node in drawn["nodes"]}
    tops = [node for node in drawn["nodes"] if node["parent"] not in nodes]
    lines = [line for top in tops for line in draw(top, nodes, coloured=False)]
    assert all(line.isprintable() for line in lines)


numbers = st.one_of(st.integers(-(10**15), 10**15), st.sampled_from([0, 10**12]))
times = st.floats(allow_nan=True, allow_infinity=True)


@given(st.lists(st.tuples(times, numbers, numbers, times), max_size=10), numbers, times)
def test_no_number_ends_an_estimate(
    observed: list[tuple[float, int, int, float]], slots: int, work: float
) -> None:
    estimator = WaitEstimator()
    for now, busy, finished, each in observed:
        estimator.started(now, each)
        estimator.observe(now, min(busy, 1000), finished)
    forecast = estimator.forecast(0.0, min(slots, 1000))
    if forecast is not None:
        forecast.next_start(work)


@pytest.mark.parametrize(
    "lie",
    [
        {"free": 3},
        {"free": -1},
        {"slots": 10**12, "free": 1},
        {"slots": -5},
        {"received": -1},
        {"number": 10**30},
        {"users": {"ada": -3}},
        {"users": {f"u{number}": 1 for number in range(30_000)}},
        {"users": {"x" * 1000: 1}},
        {"boot": "x" * 1000},
    ],
)
async def test_counters_that_cannot_be_true_are_ignored_and_shown(lie: dict[str, object]) -> None:
    honest = msgspec.to_builtins(Capacity(node="ghost", slots=2, free=2, received=0, finished=0))
    async with Cluster(HoldHigh) as cluster:
        root = await cluster.add("root")
        await cluster.add("n1", "root")
        cluster.broker.put("", names.inbox("root"), json.dumps({**honest, **lie}).encode())
        await until(lambda: "ghost" in root.state().warning)
        assert root.dispatcher.child("ghost") is None
        assert root.dispatcher.subtree_slots() == 1
        stream = await cluster.ask("a")
        await until(lambda: "a" in cluster.engine("n1").steps)
        cluster.engine("n1").finish("a")
        assert isinstance((await read(stream))[1][-1], Finished)


def test_counters_that_are_true_are_consistent() -> None:
    assert not inconsistency(Capacity(node="n1", slots=2, free=2, received=0, finished=5))


def test_a_frame_that_is_not_understood_takes_no_other_along() -> None:
    good = Start(request_id="good", node="n1")
    raw = json.loads(encode(Frames(frames=(good, good))))
    raw["frames"].insert(1, {**raw["frames"][0], "request_id": "bad", "attempt": -1})
    raw["frames"].append({"kind": "invented", "request_id": "bad"})
    frames, reasons = decode_frames(json.dumps(raw).encode())
    assert frames == [good, good]
    assert len(reasons) == 2
    assert decode_frames(b"no json")[0] == []
    assert decode_frames(b'{"frames": ' + b"[" * 100_000)[0] == []


async def test_a_node_that_is_not_registered_counts_for_nothing() -> None:
    async with Cluster() as cluster:
        await cluster.add("root")
        await cluster.add("n1", "root")
        ghost = encode(node_state("ghost", held=1_000_000))
        for _ in range(3):
            cluster.broker.put(names.EVENTS_EXCHANGE, names.state_key("ghost"), ghost)
        await cluster.add("n2", "root")
        await until(lambda: "n2" in cluster.client.nodes())
        assert set(cluster.client.nodes()) == {"root", "n1", "n2"}


async def test_the_reader_of_a_job_that_no_node_can_read_hears_of_it() -> None:
    async with Cluster() as cluster:
        await cluster.add("root")
        await cluster.add("n1", "root")
        stream = await cluster.ask("a")
        await until(lambda: "a" in cluster.engine("n1").steps)
        body = msgspec.to_builtins(
            Job(request_id="a", model="m", reply_to=reply_queue(cluster), created=0, prompt="p")
        )
        cluster.broker.put("", names.node("root"), json.dumps({**body, "work": -1}).encode())
        _, frames = await read(stream)
        assert isinstance(frames[-1], Failed)
        assert (frames[-1].code, "$.work" in frames[-1].message) == ("invalid", True)


async def test_a_frame_of_an_attempt_that_nobody_granted_is_no_answer() -> None:
    async with Cluster() as cluster:
        await cluster.add("root")
        node = await cluster.add("n1", "root")
        stream = await cluster.ask("a")
        await until(lambda: stream._running)
        node.link.port.outbox.put(
            reply_queue(cluster), Finished(request_id="a", attempt=10**9, seq=1, reason="stop")
        )
        cluster.engine("n1").say("a", "text")
        cluster.engine("n1").finish("a")
        assert (await read(stream))[0] == "text"
