"""Hosts: what an agent allows, how it carries requests out, where nodes go."""

import asyncio
import sys
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
import pytest_asyncio

from api.operate.hosts.hosts import parent_for
from broker.errors import ConnectionLost, NameTaken, NoSuchHost, Refusal
from broker.host_messages import HostDevice, HostNode, HostState, KillNode, StartNode, StopNode
from broker.host_watch import HostWatch, new_number
from broker.memory import MemoryBroker, MemorySession
from broker.shared_objects import declare_shared
from cli.home import Home
from cli.host import agent, machine
from cli.host.allowed import Allowed, Present, refusal, shortage
from cli.host.nodes import HostNodes
from cli.plan import NewNode
from cli.process import Spec
from cli.supervisor import Supervisor
from topology.placement import best_parent, free_name

GPU = HostDevice(name="cuda:0", memory=80 * 10**9, memory_free=10**9)
ALLOWED = Allowed(models={"tiny": "tiny", "big": "org/big"}, devices=("cpu",), max_nodes=2)
SERVES = """
import signal
print("ready", flush=True)
signal.pause()
"""
SECONDS = 20.0


def request(**changes: object) -> StartNode:
    fields = {"number": new_number(), "node": "n8", "model": "tiny", "parent": "root"}
    return StartNode(**{**fields, **changes})


def present(nodes: int = 0, memory_free: int = 10**10) -> Present:
    names = {f"n{number}" for number in range(1, nodes + 1)}
    return Present(names=names, nodes=nodes, memory_free=memory_free, devices=(GPU,))


@pytest.mark.parametrize(
    ("changes", "nodes", "reason"),
    [
        ({}, 1, None),
        ({"model": "../secret"}, 1, "does not allow the model"),
        ({"node": "n1"}, 1, "runs here already"),
        ({}, 2, "no more are allowed"),
        ({"parent": None}, 2, None),  # a root computes nothing
        ({"device": "cuda:0"}, 1, "does not allow the device"),
        ({"device": "cuda:7"}, 1, "no device cuda:7"),
        ({"device": "cpu"}, 1, None),
    ],
)
def test_a_host_starts_what_it_allows(
    changes: dict[str, object], nodes: int, reason: str | None
) -> None:
    said = refusal(request(**changes), ALLOWED, present(nodes))
    if reason is None:
        assert said is None
    else:
        assert said is not None
        assert reason in said


def test_a_model_must_fit_into_the_memory_that_is_free() -> None:
    assert shortage(5 * 10**9, "cpu", present()) is None
    assert "up to 8.1 GB would fit" in (shortage(9 * 10**9, "cpu", present()) or "")
    assert "up to 0.6 GB would fit" in (shortage(10**9, "cuda:0", present()) or "")
    assert shortage(10**12, "auto", present()) is None, "which GPU it takes is not known here"


def test_the_memory_of_gpus_is_read() -> None:
    devices = machine.parse("81559, 1000\nno devices\n81559, 81000\n")
    assert [device.name for device in devices] == ["cuda:0", "cuda:2"]
    assert devices[0].memory_free == 1000 * 2**20


def test_a_new_node_keeps_the_trees_shape() -> None:
    flat = {"root": ["n1", "n2"], "n1": [], "n2": []}
    assert best_parent("root", flat) == "root"
    deep = {"root": ["n1"], "n1": ["n2", "n3"], "n2": ["n4"], "n3": [], "n4": []}
    assert best_parent("root", deep) == "n2"
    drained = {"root": ["n1"], "n1": ["n2", "n3"], "n3": []}  # n2 takes no jobs
    assert best_parent("root", drained) == "n3"
    assert free_name({"n1", "n2", "n4"}) == "n3"


class Host:
    """An agent with small programs in the place of nodes, and an API process that watches it."""

    def __init__(self, folder: Path) -> None:
        self.broker = MemoryBroker()
        self.home = Home(folder / "home")
        self.home.make()
        self.program = SERVES
        self.sessions: list[MemorySession] = []  # of the agent
        self.supervisor = Supervisor(self.home, None, print)
        self.agent = self.make_agent()
        self.nodes = HostNodes(
            self.supervisor,
            self.home,
            self.spec,
            ALLOWED,
            needs_files=False,
            folders={},
            drills=True,
            on_change=self.agent.touch,
        )
        self.watch = HostWatch("api-1")

    def make_agent(self) -> agent.HostAgent:
        async def connect() -> MemorySession:
            self.sessions.append(self.broker.session())
            return self.sessions[-1]

        return agent.HostAgent("here", "echo", connect, print)

    def spec(self, new: NewNode) -> Spec:
        command = [sys.executable, "-S", "-E", "-c", self.program]
        return Spec(new.name, command, is_ready=lambda line: line == "ready")

    async def ask(self, wanted: StartNode | StopNode | KillNode) -> None:
        await self.watch.request("here", wanted)

    async def state(self, name: str, state: str) -> HostNode:
        """The node when its host says that it is in that state."""
        async with asyncio.timeout(SECONDS):
            while True:
                for node in self.listed():
                    if (node.name, node.state) == (name, state):
                        return node
                await self.watch.changed()

    def listed(self) -> tuple[HostNode, ...]:
        states: dict[str, HostState] = self.watch.states()
        return states["here"].nodes if states else ()


@pytest_asyncio.fixture
async def host(tmp_path: Path) -> AsyncIterator[Host]:
    here = Host(tmp_path)
    session = here.broker.session()
    await declare_shared(session)
    await here.watch.open(session)
    life = asyncio.create_task(here.agent.run(here.nodes, patient=False))
    async with asyncio.timeout(SECONDS):
        await here.watch.changed()
    yield here
    life.cancel()
    await asyncio.gather(life, return_exceptions=True)
    assert here.watch.states() == {}  # it says that it leaves
    await here.nodes.close()
    await here.supervisor.stop()


async def test_a_node_starts_and_ends_on_request(host: Host) -> None:
    await host.ask(request())
    started = await host.state("n8", "running")
    assert (started.model, started.parent) == ("tiny", "root")
    await host.ask(StopNode(number=new_number(), node="n8"))
    async with asyncio.timeout(SECONDS):
        while host.listed():
            await host.watch.changed()


async def test_a_node_that_does_not_start_tells_why(host: Host) -> None:
    host.program = 'print("loading"); print("node n8: no such model")'
    await host.ask(request())
    failed = await host.state("n8", "failed")
    assert "no such model" in failed.note
    assert failed.tail == ("loading", "node n8: no such model")


async def test_a_drill_kills_a_node_which_comes_back(host: Host) -> None:
    await host.ask(request())
    first = (await host.state("n8", "running")).pid
    await host.ask(KillNode(number=new_number(), node="n8"))
    await host.state("n8", "restarting")
    assert (await host.state("n8", "running")).pid != first


async def test_requests_are_refused_with_the_reason(host: Host) -> None:
    with pytest.raises(Refusal, match="does not allow the model"):
        await host.ask(request(model="other"))
    with pytest.raises(Refusal, match="no node n1"):
        await host.ask(StopNode(number=new_number(), node="n1"))
    with pytest.raises(NoSuchHost):
        await host.watch.request("nowhere", request())


async def test_only_nodes_are_started_and_stopped(host: Host) -> None:
    """The supervisor of `up` has the broker and the API, too."""
    await host.supervisor.add("broker", host.spec(NewNode("broker", "tiny", None, None, "", None)))
    with pytest.raises(Refusal, match="no node broker"):
        await host.ask(StopNode(number=new_number(), node="broker"))
    with pytest.raises(Refusal, match="no node broker"):
        await host.ask(KillNode(number=new_number(), node="broker"))
    with pytest.raises(Refusal, match="runs here already"):
        await host.ask(request(node="broker"))
    assert host.supervisor.has("broker")


async def test_a_second_agent_of_one_name_is_refused(host: Host) -> None:
    with pytest.raises(NameTaken, match="say --name"):
        await host.make_agent().run(host.nodes, patient=False)


async def test_an_agent_comes_back_after_a_lost_connection(host: Host) -> None:
    host.sessions[-1].lose(ConnectionLost("cut"))
    async with asyncio.timeout(SECONDS):
        while True:
            try:
                await host.ask(request())
            except NoSuchHost:
                await asyncio.sleep(0.05)
            else:
                break
    await host.state("n8", "running")


def test_no_node_is_placed_below_a_joined_one() -> None:
    def node(name: str, *children: str, joined: bool = False) -> dict[str, object]:
        engine = "none" if name == "root" else "echo"
        told = {"name": name, "children": list(children), "joined": joined}
        return {**told, "model": "m", "state": "idle", "engine": engine}

    nodes = [
        node("root", "a-room", "n1"),
        node("a-room", joined=True),
        node("n1", "n2"),
        node("n2"),
    ]
    assert parent_for({"nodes": nodes}, "m") == "n1"
