"""A cluster whose processes come and go at any moment, with engines that check themselves."""

import asyncio
from collections.abc import AsyncIterator
from types import SimpleNamespace
from typing import Any
from unittest import mock

import msgspec

from broker.encoding import decode, encode
from broker.errors import ConnectionLost, DecodeError
from broker.management import Edges, read_edges
from broker.memory import MemorySession
from broker.stream import Stream
from broker.wire import Adopt, AnyFrame, Delta, Failed, Finished, Job, Task
from tests.unit.cluster import Cluster
from topology import names
from topology.tree import orphans
from worker.engines.base import Chunk, EngineFailed, Footprint, Markup
from worker.errors import EngineStuck
from worker.life import live
from worker.node import Node

ORPHANS_SECONDS = 5.0  # as in api/tree/orphans.py
_TIMED = (
    "worker.run",
    "worker.node",
    "worker.waiting",
    "worker.warnings",
    "broker.deadline",
    "broker.node_states",
    "broker.registration",
    "broker.dead_letter_headers",
)


def answer(request_id: str) -> list[str]:
    """The one true answer, token by token: 0 to 5 of them."""
    number = int(request_id[1:])
    return [f"{request_id}.{place} " for place in range(number * 3 % 6)]


class Run:
    """One run of a job on an engine."""

    def __init__(self, job: Job, rest: list[Chunk]) -> None:
        self.job = job
        self.rest = rest
        self.steps: asyncio.Queue[Chunk | Exception] = asyncio.Queue()

    def say(self) -> None:
        """The next token; after the last one, the end."""
        self.steps.put_nowait(self.rest.pop(0) if self.rest else Chunk(finish="stop"))

    def finish(self) -> None:
        """All that is left."""
        while self.rest:
            self.say()
        self.say()


class Puppet:
    """An engine that advances and fails on demand, and checks from where it continues."""

    name = "puppet"
    model = "m"
    device = "test"
    warm = True

    def __init__(self, slots: int, wrong: list[str]) -> None:
        self.slots = slots
        self.runs: list[Run] = []
        self.eager = False  # runs end by themselves
        self.well = True
        self.context_length = 0
        self.warning = ""
        self.stuck = False
        self.hanging = 0.0
        self._wrong = wrong

    async def start(self) -> None:
        if not self.well:
            raise RuntimeError("no such device")
        self.hanging = 0.0

    async def stop(self) -> None: ...

    reuse = (0, 0)
    footprint = Footprint()
    tasks: tuple[Task, ...] = ("generate",)

    @property
    def usable_slots(self) -> int:
        return self.slots

    def stalled(self) -> float:
        return self.hanging

    def markup(self, job: Job) -> Markup:
        return Markup()

    async def run(self, job: Job) -> AsyncIterator[Chunk]:
        tokens, done = answer(job.request_id), len(job.delivered_ids)
        if job.delivered_ids != tuple(range(done)) or job.delivered != "".join(tokens[:done]):
            self._wrong.append(
                f"{job.request_id} goes on from {job.delivered!r}, {job.delivered_ids}"
            )
        rest = [
            Chunk(text=tokens[place], tokens=1, ids=(place,)) for place in range(done, len(tokens))
        ]
        run = Run(job, rest)
        self.runs.append(run)
        if len(self.runs) > self.slots:
            self._wrong.append(f"{len(self.runs)} runs in {self.slots} slots")
        if self.eager:
            run.finish()
        try:
            yield Chunk(prompt_tokens=1, tokens=done)
            while True:
                step = await run.steps.get()
                if isinstance(step, Exception):
                    raise step
                yield step
        finally:
            self.runs.remove(run)

    def fail(self) -> None:
        """The step that is being computed breaks, for every run."""
        for run in self.runs:
            run.steps.put_nowait(EngineFailed("out of memory"))


class Request:
    """What the tests know of one request."""

    def __init__(self, stream: Stream) -> None:
        self.stream = stream
        self.truth = "".join(answer(stream.request_id))
        self.frames: list[AnyFrame] = []
        self.blame = 0  # begun runs that may have been lost by somebody's fault
        self.cancelled = False  # its user said so
        self.left = False  # its reader did not wait for the end
        self.reading = asyncio.create_task(self._read(), name=f"read {stream.request_id}")

    async def _read(self) -> None:
        async for frame in self.stream:
            self.frames.append(frame)

    @property
    def text(self) -> str:
        """What its reader has read."""
        return "".join(frame.text for frame in self.frames if isinstance(frame, Delta))

    @property
    def ends(self) -> list[Finished | Failed]:
        """Should be one, in the end."""
        return [frame for frame in self.frames if isinstance(frame, Finished | Failed)]

    async def leave(self) -> None:
        """Its reader goes away."""
        self.left = True
        self.reading.cancel()
        await asyncio.gather(self.reading, return_exceptions=True)
        await self.stream.aclose()


class World(Cluster):
    """Processes by key: a node's name, or the name of a candidate for the root."""

    def __init__(self) -> None:
        super().__init__()
        self.wrong: list[
            str
        ] = []  # what must not happen, noticed where no test would see an exception
        self.homes: dict[str, str] = {}  # where nodes were started
        self.requests: dict[str, Request] = {}
        loop = asyncio.get_running_loop()
        loop.set_exception_handler(lambda _, context: self.wrong.append(str(context)))
        clock = SimpleNamespace(time=loop.time, monotonic=loop.time)
        for module in _TIMED:
            self.enter_context(mock.patch(f"{module}.time", clock))

    # ---- processes

    def launch(self, key: str, parent: str | None, slots: int = 1) -> None:
        """Starts a process without waiting for it. A root is a standby while another lives."""
        engine = None if parent is None else Puppet(slots, self.wrong)
        name = "root" if parent is None else key
        node = self.nodes[key] = Node(name, parent, "m", self.policy(), engine, step_seconds=10.0)

        async def connect() -> MemorySession:
            self.sessions[key] = self.broker.session()
            return self.sessions[key]

        if parent is not None:
            self.homes[key] = parent
        self.sessions.pop(key, None)
        self._leave[key] = asyncio.Event()
        life = live(node, connect, self._leave[key], wait=1e9, standby=parent is None)
        self._lives[key] = asyncio.create_task(life, name=f"life of {key}")
        self._lives[key].add_done_callback(self._ended)

    def _ended(self, life: asyncio.Task[None]) -> None:
        if (
            not life.cancelled()
            and life.exception()
            and not isinstance(life.exception(), EngineStuck)
        ):
            self.wrong.append(f"{life.get_name()} ended: {life.exception()!r}")

    def living(self, *, roots: bool = True, others: bool = True) -> list[str]:
        """Keys of the processes that run."""
        return [
            key
            for key, life in self._lives.items()
            if not life.done() and (roots if self.nodes[key].engine is None else others)
        ]

    async def kill(self, name: str) -> None:
        self._lives[name].cancel()
        if name in self.sessions:
            self.sessions[name].lose(ConnectionLost("killed"))
        await asyncio.gather(self._lives[name], return_exceptions=True)

    def leave(self, key: str) -> None:
        """Tells the process to end in order."""
        self._leave[key].set()

    async def have_left(self) -> None:
        """Returns when those that were told to leave have ended."""
        leaving = [life for key, life in self._lives.items() if self._leave[key].is_set()]
        await asyncio.gather(*leaving, return_exceptions=True)

    async def end_all(self) -> None:
        """Every process ends in order, and so does the client."""
        for key in self._lives:
            self.leave(key)
        await asyncio.gather(*self._lives.values(), return_exceptions=True)
        await self.client.stop()

    def puppet(self, key: str) -> Puppet:
        engine = self.nodes[key].engine
        assert isinstance(engine, Puppet)
        return engine

    def runs(self, key: str | None = None) -> list[Run]:
        """What runs on that node, or anywhere."""
        keys = self.living(roots=False) if key is None else [key]
        return [run for each in keys if self.nodes[each].engine for run in self.puppet(each).runs]

    # ---- requests

    async def submit(self, request_id: str, seconds: float | None) -> None:
        """`seconds`: until its deadline."""
        self.requests[request_id] = Request(await self.ask(request_id, seconds_left=seconds))

    def blame(self, key: str) -> None:
        """Its runs are about to be lost; what it forwards now may be forwarded and run twice."""
        node = self.nodes[key]
        lost = {run.job.request_id for run in self.runs(key)}
        taken = {self._request_id(message.body) for _, message in self.taken(key)}
        lost |= taken - {held.job.request_id for held in node.jobs.waiting}
        for request_id in lost & set(self.requests):
            self.requests[request_id].blame += 1

    @staticmethod
    def _request_id(body: bytes) -> str:
        try:
            return decode(body, Job).request_id
        except DecodeError:
            return ""

    def repeat(self, request: Request, node: str) -> None:
        """As if a parent had died between a forward's confirm and its acknowledgement."""
        reply_to = self.client._reply_queue
        job = msgspec.structs.replace(request.stream.job, reply_to=reply_to, restarted=True)
        if self.broker.put("", names.node(node), encode(job)):
            request.blame += 1  # the run that it supersedes looks lost

    # ---- what is left

    def edges(self) -> Edges:
        """The tree, as the broker's management API would tell it."""
        bindings: list[dict[str, object]] = [
            {"source": source, "destination": queue, "routing_key": key}
            for source, key, queue in self.broker.bindings
        ]
        return read_edges(bindings, [{"name": queue} for queue in self.broker.queues])

    async def look_after_orphans(self) -> None:
        """What the API does all the time; see api/tree/orphans.py."""
        before: dict[str, str] = {}
        while True:
            await asyncio.sleep(ORPHANS_SECONDS)
            seen = self.edges()
            now = orphans(seen.parents, seen.roots, seen.registered, seen.present)
            for node, ancestor in now.items():
                if node in before:
                    self.broker.put("", names.inbox(ancestor), encode(Adopt(node=node)))
            before = now

    def unsettled(self) -> list[str]:
        """Jobs that are somewhere, for people to read."""
        queued = [
            f"{len(queue.ready)} in {name}"
            for name, queue in self.broker.queues.items()
            if names.node_of(name) is not None and queue.ready
        ]
        busy = [f"{key} is busy" for key in self.living() if self.nodes[key].jobs.busy]
        taken = [
            f"{key} has not settled {message.body!r} of {queue}"
            for key in self.living()
            for queue, message in self.taken(key)
            if names.node_of(queue) is not None
        ]
        return queued + busy + taken

    def taken(self, key: str) -> list[tuple[str, Any]]:
        """What that process has not settled: queue and message."""
        return list(self.sessions[key].unsettled.values()) if key in self.sessions else []
