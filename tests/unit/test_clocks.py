"""Wall clocks decide nothing: they may be hours off, and jump while jobs wait and run."""

import asyncio
import os
import time
from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any

import msgspec
import psutil
import pytest

from api.answers import process
from broker import node_states
from broker.deadline import expiry, has_passed, with_time_left
from broker.management import read_edges
from broker.node_states import NodeStates, warnings_of_clocks
from broker.snapshot import clock_difference
from broker.tree import tree
from broker.wire import Failed, Finished, Job
from cli.commands.tree import node_line
from cli.processes import ProcessRecord
from tests.unit.api_site import node_state
from tests.unit.cluster import Cluster, read, until
from topology.dispatch import HoldHigh
from worker import life

TWO_HOURS = 7200.0
NODE_MODULES = (
    "worker.node",
    "worker.waiting",
    "worker.run",
    "broker.dead_letter_headers",
    "broker.deadline",
)
API_MODULES = ("broker.node_states", "broker.stream")


class WallClock:
    """time.time of some modules, off by `ahead` seconds; their monotonic clock is right."""

    def __init__(self) -> None:
        self.ahead = 0.0

    def time(self) -> float:
        return time.time() + self.ahead


def change(monkeypatch: pytest.MonkeyPatch, modules: tuple[str, ...]) -> WallClock:
    clock = WallClock()
    for module in modules:
        monkeypatch.setattr(
            f"{module}.time", SimpleNamespace(time=clock.time, monotonic=time.monotonic)
        )
    return clock


async def serve_through(cluster: Cluster, jump: Any) -> None:
    """The clock jumps while one job runs, one waits and one is to come; all are answered."""
    await cluster.add("root")
    await cluster.add("n1", "root")
    runs = await cluster.ask("runs", seconds_left=60.0)
    await until(lambda: "runs" in cluster.engine("n1").steps)
    waits = await cluster.ask("waits", seconds_left=60.0)
    await until(lambda: cluster.nodes["root"].state().held == 1)
    jump()
    later = await cluster.ask("later", seconds_left=60.0)
    for node in cluster.nodes.values():
        node.jobs.sweep()
        node.announcer.send_all()
    for stream in (runs, waits, later):
        await until(lambda request=stream.request_id: request in cluster.engine("n1").steps)
        cluster.engine("n1").finish(stream.request_id)
        assert isinstance((await read(stream))[1][-1], Finished)
    assert set(cluster.client.nodes()) == {"root", "n1"}


@pytest.mark.parametrize("modules", [NODE_MODULES, API_MODULES, NODE_MODULES + API_MODULES])
@pytest.mark.parametrize(
    ("before", "after"), [(TWO_HOURS, TWO_HOURS), (-TWO_HOURS, TWO_HOURS), (TWO_HOURS, 0.0)]
)
async def test_no_wall_clock_ends_a_job(
    monkeypatch: pytest.MonkeyPatch, modules: tuple[str, ...], before: float, after: float
) -> None:
    clock = change(monkeypatch, modules)
    clock.ahead = before
    async with Cluster(HoldHigh) as cluster:
        await serve_through(cluster, lambda: setattr(clock, "ahead", after))


def test_time_left_is_what_travels(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = SimpleNamespace(time=lambda: 1e9, monotonic=lambda: 100.0)
    monkeypatch.setattr("broker.deadline.time", clock)
    job = Job(request_id="a", model="m", reply_to="q", created=0.0, prompt="p", seconds_left=30.0)
    expires = expiry(job)
    assert expires == 130.0
    clock.monotonic = lambda: 110.0
    clock.time = lambda: 0.0
    assert with_time_left(job, expires).seconds_left == 20.0
    clock.monotonic = lambda: 131.0
    assert has_passed(expires)
    assert with_time_left(job, expires).seconds_left == 0.0
    assert expiry(msgspec.structs.replace(job, seconds_left=None)) is None


def test_a_deadline_of_a_former_version_is_read_and_not_sent_on(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(
        "broker.deadline.time", SimpleNamespace(time=lambda: 1000.0, monotonic=lambda: 5.0)
    )
    job = Job(request_id="a", model="m", reply_to="q", created=0.0, prompt="p", deadline=1060.0)
    expires = expiry(job)
    assert expires == 65.0
    sent = with_time_left(job, expires)
    assert (sent.seconds_left, sent.deadline) == (60.0, None)


async def test_a_job_that_waited_unread_beyond_its_time_is_not_run_for_long() -> None:
    """Nobody counts the time in a queue without a consumer.

    The API has ended the answer, and says so when it hears of the job again.
    """
    async with Cluster() as cluster:
        await cluster.add("root")
        await cluster.end("root")
        stream = await cluster.ask("a", seconds_left=60.0)
        stream.fail("expired", "the deadline passed")
        cluster.client.cancel("a", "")  # no node is there to hear it
        await cluster.add("root")
        node = await cluster.add("n1", "root")
        await until(lambda: node.dispatcher.finished == 1 and not node.jobs.busy)
        assert isinstance(stream.end, Failed)


async def test_a_job_moved_to_another_node_keeps_its_time_left(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(life, "GRACE_SECONDS", 0.1)  # the run does not end by itself
    async with Cluster() as cluster:
        await cluster.add("root")
        await cluster.add("n1", "root")
        await cluster.ask("a", seconds_left=60.0)
        await until(lambda: "a" in cluster.engine("n1").jobs)
        await asyncio.sleep(0.01)
        await cluster.end("n1")
        await until(lambda: cluster.nodes["root"].state().held == 1)
        await cluster.add("n2", "root")
        await until(lambda: "a" in cluster.engine("n2").jobs)
        left = cluster.engine("n2").jobs["a"].seconds_left
        assert left is not None
        assert 50.0 < left < 60.0 - 0.01


# ---- differences


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Iterator[SimpleNamespace]:
    clock = SimpleNamespace(now=1e9, since=100.0)
    clock.time, clock.monotonic = lambda: clock.now, lambda: clock.since
    monkeypatch.setattr(node_states, "time", clock)
    return clock  # type: ignore[return-value]


def test_a_nodes_clock_is_compared_by_its_quickest_message(clock: SimpleNamespace) -> None:
    states = NodeStates()
    for delay in (5.0, 0.1, 3.0):
        assert states.add(node_state("n1", sent=clock.now - delay)) in (None, -5.0)
    assert states.clock_differences() == {"n1": -0.1}
    assert warnings_of_clocks(states.clock_differences()) == []


def test_a_clock_that_is_off_is_warned_about_once(clock: SimpleNamespace) -> None:
    states = NodeStates()
    warned = [states.add(node_state("n1", sent=clock.now + TWO_HOURS)) for _ in range(5)]
    assert warned == [TWO_HOURS, None, None, None, None]
    assert warnings_of_clocks(states.clock_differences()) == [
        "n1: its clock is 7200 s ahead of this machine's; set it (NTP)"
    ]
    assert states.recent()["n1"].sent == clock.now
    for _ in range(node_states.CLOCK_SAMPLES):
        states.add(node_state("n1", sent=clock.now))
    assert states.clock_differences() == {"n1": 0.0}


def test_a_silent_node_is_lost_until_it_is_heard_or_says_that_it_ends(
    clock: SimpleNamespace,
) -> None:
    states = NodeStates()
    for name in ("n1", "n2"):
        states.add(node_state(name, sent=clock.now))
    assert states.lost() == set()
    clock.since += node_states.SILENT_SECONDS + 1
    assert states.lost() == {"n1", "n2"}
    assert states.recent() == {}
    states.add(node_state("n1", sent=clock.now))
    states.remove("n2")
    assert states.lost() == set()


def test_a_jump_of_this_machines_clock_loses_no_node(clock: SimpleNamespace) -> None:
    states = NodeStates()
    states.add(node_state("n1", sent=clock.now))
    for jump in (TWO_HOURS, -2 * TWO_HOURS):
        clock.now += jump
        assert set(states.recent()) == {"n1"}
    clock.since += node_states.SILENT_SECONDS + 1
    assert states.recent() == {}


def test_an_answer_sent_between_question_and_arrival_shows_no_difference() -> None:
    assert clock_difference(requested=10.0, sent=10.5, arrived=14.0) == 0.0
    assert clock_difference(requested=10.0, sent=20.0, arrived=14.0) == 6.0
    assert clock_difference(requested=10.0, sent=4.0, arrived=14.0) == -6.0


def test_the_drawn_tree_says_whose_clock_is_off() -> None:
    edges = read_edges(
        [{"source": "canopy.jobs", "destination": "canopy.node.root", "routing_key": "tiny"}],
        [{"name": "canopy.node.root"}, {"name": "canopy.inbox.root"}],
    )
    states = {
        "root": node_state(
            "root", engine="none", parent=None, warning="x: its counters were ignored"
        )
    }
    (root,) = tree(edges, states, {}, now=1e9, clock_differences={"root": -TWO_HOURS})["nodes"]
    assert root["clock_difference"] == -TWO_HOURS
    line = node_line(root, coloured=False)
    assert "its clock is 7200 s behind this machine's; set it (NTP)" in line
    assert "its counters were ignored" in line


@pytest.mark.parametrize("jump", [TWO_HOURS, -TWO_HOURS, 1.0])
def test_a_process_is_known_again_when_the_clock_was_set(
    monkeypatch: pytest.MonkeyPatch, jump: float
) -> None:
    recorded, identity = ProcessRecord.of("me", os.getpid()), process.identity()
    assert recorded.process() is not None
    began, booted = psutil.Process.create_time, psutil.boot_time
    monkeypatch.setattr(psutil.Process, "create_time", lambda self: began(self) + jump)
    monkeypatch.setattr(psutil, "boot_time", lambda: booted() + jump)
    assert recorded.process() is not None
    assert process.may_live(identity)
