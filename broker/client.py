"""The API's side of the broker: submit a job, stream its answer, follow the nodes.

One Client a process. It owns one exclusive reply queue; every frame that arrives there names its request, and goes
to the stream that waits for it. Nothing here knows what a node is doing or where.
"""

import asyncio
import contextlib
import random
import socket
import time
import uuid
from collections.abc import Awaitable, Callable, Iterable

import msgspec
import structlog

from broker.amqp import AmqpSession
from broker.objects import declare_shared
from broker.session import BrokerError, Delivery, Session
from broker.stream import Stream
from broker.tree import SILENT_SECONDS, on_our_clock
from broker.wire import AnyControl, Cancel, DecodeError, Frames, Job, NodeState, Ping, decode, encode
from topology import names

REPLY_PREFETCH = 1000
CONFIRM_SECONDS = 5.0
RECONNECT_SECONDS = (0.2, 5.0)  # first and longest pause; a random part of it is slept

Connect = Callable[[], Awaitable[Session]]
log = structlog.get_logger()


class Unavailable(Exception):
    """The broker is not connected, takes no publishes, or did not confirm in time. Trying again later helps."""


class NoTree(Exception):
    """No root is bound for that model."""


class Client:
    """See the module. `connect` replaces RabbitMQ in unit tests."""

    def __init__(
        self,
        amqp_url: str,
        *,
        process: str | None = None,
        queue_type: str = "classic",
        connect: Connect | None = None,
    ) -> None:
        self.process = process or f"{socket.gethostname()}-{uuid.uuid4().hex[:8]}"
        self._connect = connect or (lambda: AmqpSession.open(amqp_url, f"api {self.process}", queue_type=queue_type))
        self._sessions = 0
        self._session: Session | None = None
        self._keeper: asyncio.Task[None] | None = None
        self._streams: dict[str, Stream] = {}
        self._nodes: dict[str, NodeState] = {}
        self._changes = asyncio.Event()

    async def start(self) -> None:
        """Begins to connect, in the background and with back-off."""
        self._keeper = asyncio.create_task(self._keep_connected(), name="broker client")

    async def stop(self) -> None:
        """Ends the connection; open streams fail."""
        if self._keeper is not None:
            self._keeper.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await self._keeper

    @property
    def connected(self) -> bool:
        """True if a job could be submitted now."""
        return self._session is not None and not self._session.blocked

    async def submit(self, job: Job) -> Stream:
        """Publishes the job and returns once the broker has it. `reply_to`, and a seed if there is none, are filled in.

        Raises Unavailable, or NoTree when no root is bound for its model.
        """
        session = self._session
        if session is None or session.blocked:
            raise Unavailable("the broker takes no jobs now" if session else "the broker is not connected")
        sampling = job.sampling
        if sampling.seed is None:
            sampling = msgspec.structs.replace(sampling, seed=random.getrandbits(63))
        job = msgspec.structs.replace(job, reply_to=self._reply_queue, sampling=sampling)
        stream = Stream(job.request_id, self._forget)
        self._streams[job.request_id] = stream
        confirmed = session.publish(names.JOBS_EXCHANGE, job.model, encode(job), persistent=True)
        try:
            # a frame is as good as the confirm, and may come before the broker has flushed its disk
            await asyncio.wait(
                {confirmed, stream.accepted}, timeout=CONFIRM_SECONDS, return_when=asyncio.FIRST_COMPLETED
            )
            routed = stream.accepted.done() or (confirmed.done() and confirmed.result())
        except (BrokerError, asyncio.CancelledError) as error:
            self._forget(stream)
            if isinstance(error, asyncio.CancelledError):
                raise
            raise Unavailable("the broker could not take the job") from error
        if routed:
            return stream
        if confirmed.done():
            self._streams.pop(job.request_id, None)
            raise NoTree(job.model)
        self._forget(stream)
        raise Unavailable("the broker did not take the job in time")

    def nodes(self) -> dict[str, NodeState]:
        """The last state of every node that was heard lately, by name; `sent` says when, on this machine's clock."""
        oldest = time.time() - SILENT_SECONDS
        return {name: state for name, state in self._nodes.items() if state.sent >= oldest}

    async def changed(self) -> None:
        """Returns when nodes() or `connected` has changed after this call."""
        await self._changes.wait()

    async def control(self, node: str, message: AnyControl) -> bool:
        """Puts a message into a node's inbox; False if there is no such node. Raises Unavailable."""
        if self._session is None:
            raise Unavailable("the broker is not connected")
        try:
            async with asyncio.timeout(CONFIRM_SECONDS):
                return await self._session.publish("", names.inbox(node), encode(message))
        except (TimeoutError, BrokerError) as error:
            raise Unavailable("the broker did not take the message in time") from error

    async def depths(self, queues: Iterable[str]) -> dict[str, int]:
        """Messages ready in each of the queues that exist. Raises Unavailable."""
        if self._session is None:
            raise Unavailable("the broker is not connected")
        try:
            found = {queue: await self._session.depth(queue) for queue in queues}
        except BrokerError as error:
            raise Unavailable(str(error)) from error
        return {queue: depth for queue, depth in found.items() if depth is not None}

    async def _keep_connected(self) -> None:
        pause, longest = RECONNECT_SECONDS
        while True:
            try:
                session = await self._connect()
                reason = await self._serve(session)
                pause = RECONNECT_SECONDS[0]
                log.warning("broker connection lost", reason=str(reason))
            except BrokerError as error:
                log.warning("broker not reachable", reason=str(error))
            await asyncio.sleep(pause * random.uniform(0.5, 1.0))
            pause = min(longest, pause * 2)

    async def _serve(self, session: Session) -> BrokerError:
        """Uses the session until it is lost; returns why it was. Raises BrokerError if it cannot be set up."""
        try:
            await declare_shared(session)
            # a new name each time: what still runs for the last session's readers comes back as undeliverable
            self._sessions += 1
            await session.declare_queue(self._reply_queue, exclusive=True)
            await session.consume(self._reply_queue, self._on_frames, prefetch=REPLY_PREFETCH)
            await session.declare_queue(names.watch(self.process), exclusive=True)
            await session.bind(names.watch(self.process), names.EVENTS_EXCHANGE, names.state_key("*"))
            await session.consume(names.watch(self.process), self._on_state, prefetch=REPLY_PREFETCH)
            session.publish(names.CONTROL_EXCHANGE, "", encode(Ping()))
            self._session = session
            self._tell_changed()
            log.info("broker connected", process=self.process)
            return await asyncio.shield(session.closed)
        finally:
            self._session = None
            self._tell_changed()
            self._fail_streams()
            await session.close()

    @property
    def _reply_queue(self) -> str:
        return names.reply(f"{self.process}.{self._sessions}")

    def _fail_streams(self) -> None:
        """The reply queue is gone, so no frame can come for what is open."""
        for stream in list(self._streams.values()):
            stream.fail("internal", "the connection to the broker was lost")

    def _forget(self, stream: Stream) -> None:
        """Stops listening; a job that has not ended is cancelled wherever it is."""
        if self._streams.pop(stream.request_id, None) is None:
            return
        if not stream.ended and self._session is not None:
            self._session.publish(names.CONTROL_EXCHANGE, "", encode(Cancel(request_id=stream.request_id)))

    def _on_frames(self, delivery: Delivery) -> None:
        delivery.ack()
        try:
            message = decode(delivery.body, Frames)
        except DecodeError as error:
            log.warning("undecodable frames dropped", reason=str(error))
            return
        for frame in message.frames:
            stream = self._streams.get(frame.request_id)
            if stream is not None:
                stream.push(frame)

    def _on_state(self, delivery: Delivery) -> None:
        delivery.ack()
        try:
            state = decode(delivery.body, NodeState)
        except DecodeError as error:
            log.warning("undecodable node state dropped", reason=str(error))
            return
        if state.status == "stopped":
            self._nodes.pop(state.name, None)
        else:
            self._nodes[state.name] = on_our_clock(state, time.time())
        self._nodes = self.nodes()
        self._tell_changed()

    def _tell_changed(self) -> None:
        changes, self._changes = self._changes, asyncio.Event()
        changes.set()
