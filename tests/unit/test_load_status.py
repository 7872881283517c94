"""A starting node says what it is at, and how far the loading of its model is."""

import asyncio
import threading

import pytest

from broker.tree import edges_as_told, tree
from cli.commands.tree import node_line
from topology.dispatch import HoldHigh
from topology.version import VERSION
from worker import load_status
from worker.engines.echo import EchoEngine
from worker.engines.transformers.compute_thread import run_in_thread_async
from worker.node import Node


class SlowEngine(EchoEngine):
    """Loads in a thread until it may go on."""

    def __init__(self) -> None:
        super().__init__(model="echo", slots=1, token_delay=0.0)
        self.reported = asyncio.Event()
        self.proceed = threading.Event()
        self._loop = asyncio.get_running_loop()

    async def start(self) -> None:
        await run_in_thread_async(self._load)

    def _load(self) -> None:
        load_status.report("loading weights: 1.0 GB of 4.0 GB, 3 s left", 0.25)
        self._loop.call_soon_threadsafe(self.reported.set)
        self.proceed.wait(10)


async def test_a_starting_node_says_how_far_it_is() -> None:
    engine = SlowEngine()
    node = Node("n1", "root", "echo", HoldHigh(), engine)
    starting = asyncio.create_task(node.supervisor.start())
    await engine.reported.wait()
    state = node.state()
    assert (state.loaded, state.version) == (0.25, VERSION)
    nodes = tree(edges_as_told({"n1": state}), {"n1": state}, {}, state.sent)["nodes"]
    line = node_line(nodes[0], coloured=False)
    assert nodes[0]["name"] == "n1"
    assert "starting 25%" in line
    assert "1.0 GB of 4.0 GB, 3 s left" in line
    engine.proceed.set()
    await starting
    state = node.state()
    assert (state.loaded, state.detail) == (None, "")
    await node.supervisor.stop()


def test_without_a_node_nobody_is_told() -> None:
    load_status.report("loading", 0.5)


@pytest.mark.parametrize("fraction", [None, 0.0, 1.0])
def test_reports_end_with_the_start(fraction: float | None) -> None:
    status = load_status.LoadStatus()
    with load_status.following(status):
        load_status.report("loading", fraction)
        assert (status.text, status.fraction) == ("loading", fraction)
    load_status.report("more")
    assert (status.text, status.fraction) == ("", None)
