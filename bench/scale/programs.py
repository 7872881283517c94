"""The processes of one measurement: a broker of its own, without an API, and a tree of nodes on it."""

import asyncio
import contextlib
import shutil
import tempfile
from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import msgspec

from bench.instance import NotStarted
from bench.report import say
from bench.scale import shapes
from bench.scale.colony import Colony, Member
from bench.scale.shapes import Shape
from broker.client import Client
from cli.errors import CliError
from cli.home import Home, module_command
from cli.process import Child, Spec
from cli.rabbitmq import Broker, PrivateBroker

_BROKER_SECONDS = 60.0
_LEAVE_SECONDS = 20.0
_TREE_SECONDS = 90.0


@dataclass(frozen=True)
class Place:
    """A running broker and where its processes' logs go."""

    address: Broker
    broker: int  # its pid
    logs: Path


@dataclass(frozen=True)
class Tree:
    """A running tree. `pids`: by group, one a process."""

    shape: Shape
    pids: dict[str, list[int]]

    @property
    def processes(self) -> int:
        """The root's among them."""
        return sum(map(len, self.pids.values()))


@contextlib.asynccontextmanager
async def broker() -> AsyncIterator[Place]:
    """A private broker in a folder of its own, for as long as the block runs. Raises NotStarted."""
    folder = Path(tempfile.mkdtemp(prefix="canopy-scale-"))
    home = Home(folder)
    home.make()
    private = PrivateBroker(home)
    say("starting a broker")
    try:
        private.prepare()
        async with contextlib.AsyncExitStack() as started:
            mapper = await _start(started, private.epmd(), home.logs)
            await mapper.until(private.wait_epmd(_BROKER_SECONDS))
            server = await _start(started, private.server(), home.logs)
            if not await server.until(private.wait_listening(_BROKER_SECONDS)):
                raise NotStarted(f"the broker did not start: {server.last_line()}")
            yield Place(private.address(), server.pid, home.logs)
            await private.prepare_stop()
    except CliError as error:
        raise NotStarted(str(error)) from error
    finally:
        shutil.rmtree(folder, ignore_errors=True)


@contextlib.asynccontextmanager
async def tree(
    place: Place, shape: Shape, policy: str, slots: int, per_process: int
) -> AsyncIterator[Tree]:
    """The nodes of `shape`: the root as `python -m worker`, the others `per_process` to a process, inner nodes apart
    from leaves. They are told to leave from the bottom up.
    """
    environment = {"CANOPY_AMQP_URL": place.address.amqp["node"]}
    words = [
        "--name",
        shape.root,
        "--model",
        shape.model,
        "--engine",
        "none",
        "--policy",
        policy,
        "--wait",
        "60",
    ]
    groups = {
        "root": [Spec(shape.root, module_command("worker", *words), environment)],
        "inner": [
            _colony(shape, policy, names, 0, environment) for names in shapes.shared(shape.inner, per_process)
        ],
        "leaf": [
            _colony(shape, policy, names, slots, environment) for names in shapes.shared(shape.leaves, per_process)
        ],
    }  # fmt: skip
    async with contextlib.AsyncExitStack() as started:
        pids = {}
        for group, specs in groups.items():
            pids[group] = await _start_all(started, specs, place.logs)
        yield Tree(shape, pids)


async def until_grown(client: Client, shape: Shape) -> None:
    """Returns when every node serves and every parent knows its children. Raises NotStarted."""
    try:
        async with asyncio.timeout(_TREE_SECONDS):
            while missing := _missing(client, shape):
                await client.changed()
    except TimeoutError:
        raise NotStarted(f"the tree did not grow; missing: {', '.join(missing[:5])}") from None


def _missing(client: Client, shape: Shape) -> list[str]:
    nodes = client.nodes()

    def grown(name: str) -> bool:
        state = nodes.get(name)
        return (
            state is not None
            and state.status == "idle"
            and set(state.children) == shape.children(name)
        )

    return [name for name in (shape.root, *shape.parents) if not grown(name)]


def _colony(
    shape: Shape, policy: str, names: Sequence[str], slots: int, environment: dict[str, str]
) -> Spec:
    members = [Member(name, shape.parents[name], slots) for name in names]
    words = msgspec.json.encode(Colony(shape.model, policy, members)).decode()
    return Spec(names[0], module_command("bench.scale.colony", words), environment)


async def _start_all(
    started: contextlib.AsyncExitStack, specs: Sequence[Spec], logs: Path
) -> list[int]:
    """Starts all; they end together."""
    children = [await Child.start(spec, logs) for spec in specs]

    async def stop() -> None:
        await asyncio.gather(*(child.stop(_LEAVE_SECONDS) for child in children))

    started.push_async_callback(stop)
    return [child.pid for child in children]


async def _start(started: contextlib.AsyncExitStack, spec: Spec, logs: Path) -> Child:
    child = await Child.start(spec, logs)
    started.push_async_callback(child.stop, _LEAVE_SECONDS)
    return child
