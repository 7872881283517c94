"""A tree of real node processes that tests may kill, stop and start again."""

import asyncio
import itertools
import signal
from collections.abc import Callable, Mapping, Sequence
from typing import Self

from broker.client import Client
from broker.errors import ManagementError
from broker.management import Edges, edges, prune_tree
from broker.node_state import NodeState
from broker.wire import Adopt, AnyControl
from cli.rabbitmq import Broker
from tests.realbroker import NodeProcess
from topology.dispatch import DEFAULT_POLICY
from topology.shape import node_names, parent_of
from topology.tree import orphans

SECONDS = 30.0
HEARTBEATS_SECONDS = 60.0  # the broker gives up a frozen connection after twice 6 s, or a bit more
NOBODY = Edges({}, {}, frozenset(), frozenset())
TAIL_LINES = 25


class Tree:
    """`count` nodes in the shape of `canopy up --nodes COUNT --fanout 2`, and their root.

    `env` and `via` (another way to the broker) are by node and for its first life; `always` is the
    environment of every node in every life.
    """

    def __init__(
        self,
        broker: Broker,
        client: Client,
        *,
        count: int = 7,
        slots: int = 4,
        delay: float = 0.02,
        policy: str = DEFAULT_POLICY,
        engine: str = "echo",
        root: str = "root",
        prefix: str = "n",
        env: Mapping[str, Mapping[str, str]] | None = None,
        via: Mapping[str, Broker] | None = None,
        always: Mapping[str, str] | None = None,
    ) -> None:
        names = [f"{prefix}{name.removeprefix('n')}" for name in node_names(count)]
        self.root = root
        self.model = root.removeprefix("root-") if root != "root" else "echo"
        self.parents: dict[str, str] = {
            name: f"{prefix}{parent.removeprefix('n')}"
            if (parent := parent_of(place, fanout=2)) != "root"
            else root
            for place, name in enumerate(names, 1)
        }
        self.processes: dict[str, NodeProcess] = {}
        self.broker = broker
        self._client = client
        self._common = ["--model", self.model, "--policy", policy, "--wait", "30"]
        self._engine = ["--engine", engine, "--slots", str(slots), "--token-delay", str(delay)]
        self._env, self._via, self._always = dict(env or {}), dict(via or {}), dict(always or {})
        self._former: set[NodeProcess] = set()
        self._keepers: list[asyncio.Task[None]] = []

    async def __aenter__(self) -> Self:
        try:
            for name in (self.root, *self.parents):
                self.start(name)
            await self.ready(*self.processes)
            await self.whole()
        except BaseException:
            await self.__aexit__()
            raise
        return self

    async def __aexit__(self, *_: object) -> None:
        """Kills what is left. The output of every node is shown with a failed test."""
        for keeper in self._keepers:
            keeper.cancel()
        await asyncio.gather(*self._keepers, return_exceptions=True)
        everyone = {*self._former, *self.processes.values()}
        for process in everyone:
            process.process.kill()
        for process in everyone:
            await asyncio.to_thread(process.wait_exit)
            print(f"---- {process.name} (pid {process.process.pid})")
            print("".join(process.lines[-TAIL_LINES:]))

    def start(self, name: str) -> NodeProcess:
        """Starts that node, or starts it again."""
        place = (
            ["--parent", self.parents[name], *self._engine]
            if name in self.parents
            else ["--engine", "none"]
        )
        way = self._via.pop(name, self.broker)
        env = {**self._always, **self._env.pop(name, {})}
        process = NodeProcess(way, name, *place, *self._common, env=env)
        if name in self.processes:
            self._former.add(self.processes[name])
        self.processes[name] = process
        return process

    async def ready(self, *names: str) -> None:
        """Returns when these serve. Waits in threads: the test's client shares this event loop."""
        await asyncio.gather(
            *(asyncio.to_thread(self.processes[name].wait_ready) for name in names)
        )

    async def kill(self, *names: str) -> None:
        """`kill -9`, and the end of it."""
        for name in names:
            self.processes[name].process.kill()
        for name in names:
            await self.died(name)

    async def died(self, name: str) -> int:
        """Waits until it has ended; its exit status."""
        return await asyncio.to_thread(self.processes[name].wait_exit, SECONDS)

    async def restart(self, *names: str) -> None:
        """Starts dead nodes again and waits until they serve."""
        for name in names:
            self.start(name)
        await self.ready(*names)

    async def stand_by(self) -> NodeProcess:
        """A second process for the root's name, which waits for it to be free."""
        options = ["--engine", "none", *self._common, "--standby"]
        standby = NodeProcess(self.broker, self.root, *options)
        self._former.add(standby)
        await asyncio.to_thread(standby.said(" standby ").wait, SECONDS)
        return standby

    async def succeeded(self, standbys: Sequence[NodeProcess]) -> NodeProcess:
        """The standby that is the root now; returns when it serves."""
        ready = [asyncio.create_task(asyncio.to_thread(each.wait_ready)) for each in standbys]
        done, waiting = await asyncio.wait(
            ready, timeout=SECONDS, return_when=asyncio.FIRST_COMPLETED
        )
        for each in waiting:
            each.cancel()
        self.processes[self.root] = done.pop().result()
        return self.processes[self.root]

    def freeze(self, name: str) -> None:
        """SIGSTOP: it does nothing any more, and nobody is told."""
        self.processes[name].process.send_signal(signal.SIGSTOP)

    def thaw(self, name: str) -> None:
        """SIGCONT."""
        self.processes[name].process.send_signal(signal.SIGCONT)

    def supervise(self) -> None:
        """From now on a node that ends is started again, as `canopy up` does."""
        self._keepers += [
            asyncio.create_task(self._keep(name), name=f"keeper of {name}")
            for name in self.processes
        ]

    async def tell(self, name: str, message: AnyControl) -> None:
        """Puts a control message into a node's inbox, without a command line's checks."""
        assert await self._client.control(name, message), f"{name} has no inbox"

    async def whole(self) -> None:
        """Returns when every node serves, below the parent where it belongs."""
        await self.until(
            lambda nodes: all(self._stands(name, nodes) for name in (self.root, *self.parents))
        )

    async def until(self, condition: Callable[[dict[str, NodeState]], bool]) -> None:
        """Returns when the condition holds of the nodes' states; fails after a while."""
        try:
            async with asyncio.timeout(SECONDS):
                while not condition(self._client.nodes()):
                    await self._client.changed()
        except TimeoutError:
            raise AssertionError(
                "\n".join(["it did not come to that:", *map(str, self._client.nodes().values())])
            ) from None

    async def adopt_orphans(self) -> None:
        """Adopts orphans as an API process does (api/tree/orphans.py), until there are none."""
        address = self.broker.management["admin"]
        async with asyncio.timeout(SECONDS):
            while left := await _left_alone(address):
                for node, ancestor in left.items():
                    await self._client.control(ancestor, Adopt(node=node))
                await self._client.changed()

    def descendants(self, name: str) -> list[str]:
        """Everything below that node."""
        children = [child for child, parent in self.parents.items() if parent == name]
        return children + list(itertools.chain.from_iterable(map(self.descendants, children)))

    def said(self, name: str, text: str) -> list[str]:
        """The lines with that text that the node has printed in this life."""
        return [line for line in self.processes[name].lines if text in line]

    def _stands(self, name: str, nodes: Mapping[str, NodeState]) -> bool:
        state = nodes.get(name)
        children = sorted(child for child, parent in self.parents.items() if parent == name)
        return (
            state is not None
            and state.status in ("idle", "busy")
            and state.pid == self.processes[name].process.pid
            and state.parent == self.parents.get(name)
            and sorted(state.children) == children
        )

    async def _keep(self, name: str) -> None:
        while True:
            process = self.processes[name].process
            while process.poll() is None:  # noqa: ASYNC110 - a thread that waits could not be stopped
                await asyncio.sleep(0.05)
            self.start(name)


async def _left_alone(address: str) -> dict[str, str]:
    seen = await edges(address)
    return orphans(seen.parents, seen.roots, seen.registered, seen.present)


async def disconnected(broker: Broker, *nodes: str) -> None:
    """Returns when the broker has given up the connections of these nodes.

    It does so after missed heartbeats, and removes their inboxes with them.
    """
    address = broker.management["admin"]
    async with asyncio.timeout(HEARTBEATS_SECONDS):
        while not (await edges(address)).present.isdisjoint(nodes):  # noqa: ASYNC110 - as below
            await asyncio.sleep(0.2)


async def clear(broker: Broker) -> None:
    """Removes what dead nodes left in the broker, once their connections are gone too."""
    address = broker.management["admin"]
    left: object = "not asked yet"
    try:
        async with asyncio.timeout(SECONDS):
            while left:
                left = await _left(address)
                await asyncio.sleep(0.05)  # the management API tells no events
            await prune_tree(address, NOBODY)
    except TimeoutError as error:
        raise TimeoutError(f"the broker still has, after {SECONDS:.0f} s: {left}") from error


async def _left(address: str) -> frozenset[str] | str:
    """The nodes that are present, or why the management API does not answer yet after a start."""
    try:
        return (await edges(address)).present
    except ManagementError as error:
        return str(error)
