"""A whole tree in one process on the in-memory broker, with an engine that tests drive."""

import asyncio
import itertools
import time
from collections.abc import AsyncIterator, Callable
from contextlib import AsyncExitStack
from typing import Self

from broker.client import Client
from broker.errors import ConnectionLost
from broker.memory import MemoryBroker, MemorySession
from broker.session import JoinedNode
from broker.stream import Stream
from broker.tracing import NO_TRACER, Tracer
from broker.wire import AnyFrame, ChatMessage, Delta, Job, JobClass, Task
from topology.dispatch import Paper, Policy
from worker.engines.base import Chunk, EngineFailed, Footprint, Markup
from worker.life import live
from worker.node import Node

DEADLINE_SECONDS = 30.0


class HandEngine:
    """Each run waits until the test says what happens next."""

    name = "hand"
    device = "test"

    def __init__(self, model: str, slots: int) -> None:
        self.model = model
        self.slots = slots
        self.started: list[str] = []  # request ids, in the order they got a slot
        self.steps: dict[str, asyncio.Queue[Chunk | Exception]] = {}
        self.jobs: dict[str, Job] = {}  # as they were run last
        self.context_length = 0
        self.warning = ""
        self.warm = True
        self.stuck = False
        self.hanging = 0.0
        self.starts = 0

    async def start(self) -> None:
        self.starts += 1

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
        steps = self.steps[job.request_id] = asyncio.Queue()
        self.started.append(job.request_id)
        self.jobs[job.request_id] = job
        yield Chunk(prompt_tokens=1, tokens=len(job.delivered_ids))
        try:
            while True:
                step = await steps.get()
                if isinstance(step, Exception):
                    raise step
                yield step
                if step.finish is not None:
                    return
        finally:
            del self.steps[job.request_id]

    def say(self, request_id: str, text: str, token: int = 7) -> None:
        self.steps[request_id].put_nowait(Chunk(text=text, tokens=1, ids=(token,)))

    def fail(self, request_id: str) -> None:
        self.steps[request_id].put_nowait(EngineFailed("out of memory"))

    def finish(self, request_id: str) -> None:
        self.steps[request_id].put_nowait(Chunk(finish="stop"))


async def until(condition: Callable[[], object]) -> None:
    """Lets the loop run until `condition` holds; fails after DEADLINE_SECONDS."""
    async with asyncio.timeout(DEADLINE_SECONDS):
        while not condition():  # noqa: ASYNC110 - no event says that the loop has settled
            await asyncio.sleep(0)


class Cluster(AsyncExitStack):
    """`async with Cluster() as cluster: await cluster.add("n1", "root")`."""

    def __init__(self, policy: type[Policy] = Paper) -> None:
        super().__init__()
        self.broker = MemoryBroker()
        self.policy = policy
        self.client = Client("memory", process="test", connect=self._client_session)
        self.nodes: dict[str, Node] = {}
        self.sessions: dict[str, MemorySession] = {}
        self._leave: dict[str, asyncio.Event] = {}
        self._lives: dict[str, asyncio.Task[None]] = {}
        self._numbers = itertools.count(1)

    async def __aenter__(self) -> Self:
        await super().__aenter__()
        await self.client.start()
        self.push_async_callback(self.client.stop)
        await until(lambda: self.client.connected)
        return self

    async def _client_session(self) -> MemorySession:
        self.client_session = self.broker.session()
        return self.client_session

    async def add(
        self,
        name: str,
        parent: str | None = None,
        *,
        slots: int = 1,
        engine: HandEngine | None = None,
        step_seconds: float = 60.0,
        user_jobs: int | None = 0,
        model: str = "m",
        tracer: Tracer = NO_TRACER,
        joined: bool = False,
        tree_engine: str = "",
    ) -> Node:
        """A serving node; without a parent, a root. `joined`: it has a user of its own."""
        if parent is not None and engine is None:
            engine = HandEngine(model, slots)
        node = self.nodes[name] = Node(
            name,
            parent,
            model,
            self.policy(),
            engine,
            step_seconds=step_seconds,
            user_jobs=user_jobs,
            tree_engine=tree_engine,
            tracer=tracer,
        )
        own = JoinedNode(name, model) if joined else None

        async def connect() -> MemorySession:
            self.sessions[name] = self.broker.session(own)
            return self.sessions[name]

        self._leave[name] = asyncio.Event()
        self._lives[name] = asyncio.create_task(live(node, connect, self._leave[name]))
        self.push_async_callback(self.kill, name)
        await until(lambda: node.status == "idle" or self._lives[name].done())
        if self._lives[name].done():
            self._lives[name].result()
        if parent in self.nodes:
            await until(lambda: self.nodes[parent].dispatcher.child(name))
        return node

    async def stand_by(self, name: str) -> Node:
        """A standby root of that name; it is kept here as `<name> standby`."""
        key = f"{name} standby"
        node = self.nodes[key] = Node(name, None, "m", self.policy(), None)

        async def connect() -> MemorySession:
            self.sessions[key] = self.broker.session()
            return self.sessions[key]

        self._leave[key] = asyncio.Event()
        self._lives[key] = asyncio.create_task(live(node, connect, self._leave[key], standby=True))
        self.push_async_callback(self.kill, key)
        await until(lambda: key in self.sessions)
        return node

    async def article_tree(self) -> None:
        """The 7-node tree below a root."""
        await self.add("root")
        await self.add("n1", "root")
        for number in range(2, 8):
            await self.add(f"n{number}", f"n{number // 2}")

    async def end(self, name: str) -> None:
        """The node leaves in order."""
        self._leave[name].set()
        await asyncio.gather(self._lives[name], return_exceptions=True)

    async def ended(self, name: str) -> None:
        """Returns when the node has left by itself."""
        async with asyncio.timeout(DEADLINE_SECONDS):
            await self._lives[name]

    async def kill(self, name: str) -> None:
        """The node's process dies: its connection ends and nothing of it runs on."""
        self._lives[name].cancel()
        self.sessions[name].lose(ConnectionLost("killed"))
        await asyncio.gather(self._lives[name], return_exceptions=True)

    def engine(self, name: str) -> HandEngine:
        engine = self.nodes[name].engine
        assert isinstance(engine, HandEngine)
        return engine

    async def ask(
        self,
        request_id: str = "",
        *,
        seconds_left: float | None = None,
        user: str = "",
        job_class: JobClass = "interactive",
        work: float = 1.0,
        share: float = 1.0,
        traceparent: str = "",
        most_running: int | None = None,
        most_waiting: int | None = None,
    ) -> Stream:
        """Submits a job."""
        job = Job(
            request_id=request_id or f"r{next(self._numbers)}",
            model="m",
            reply_to="",
            created=time.time(),
            messages=(ChatMessage(role="user", content="hello"),),
            seconds_left=seconds_left,
            user=user,
            job_class=job_class,
            work=work,
            share=share,
            traceparent=traceparent,
            most_running=most_running,
            most_waiting=most_waiting,
        )
        return await self.client.submit(job)

    def where(self, request_id: str) -> str | None:
        """The node on which the request runs."""
        for name, node in self.nodes.items():
            if isinstance(node.engine, HandEngine) and request_id in node.engine.steps:
                return name
        return None


async def read(stream: Stream) -> tuple[str, list[AnyFrame]]:
    """The text, and all frames."""
    frames = [frame async for frame in stream]
    return "".join(frame.text for frame in frames if isinstance(frame, Delta)), frames
