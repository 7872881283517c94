"""The API's side of the broker: submit a job, stream its answer, follow the nodes.

A process has one Client, which owns one exclusive reply queue. Each frame that arrives there names
its request and goes to that request's stream. Nothing here knows what a node is doing or where.
"""

import asyncio
import contextlib
import functools
import random
import socket
import uuid
from collections.abc import Awaitable, Callable, Iterable

import msgspec
import structlog

from broker.amqp import AmqpSession
from broker.announcements import Announcements
from broker.broadcasts import Broadcasts
from broker.broker_reports import BrokerReports
from broker.conversation_events import ConversationEvents
from broker.drill_watch import DrillWatch
from broker.edge_watch import EdgeWatch
from broker.encoding import encode, encode_copy
from broker.errors import BrokerError, NoTree, Unavailable, Unsendable
from broker.frame_router import FrameRouter
from broker.host_watch import HostWatch
from broker.job_watch import JobWatch
from broker.metrics_exchange import MetricsExchange
from broker.model_supply import ModelSupply
from broker.node_state import NodeState
from broker.node_watch import NodeWatch
from broker.reply_tokens import ReplyTokens
from broker.session import Session
from broker.shared_objects import declare_shared, hear_joined
from broker.stream import Stream
from broker.wire import NO_RUN, AnyControl, Cancel, Finished, Job, ResumeGrant, Waiting
from topology import names

REPLY_PREFETCH = 1000
CONFIRM_SECONDS = 5.0
SUBMIT_SECONDS = 1.5  # a new job waits so long for the broker to come back
PATIENCE_SECONDS = 120.0  # an accepted job waits so long
ALARM = "the broker is short of memory or disk and takes no jobs now"
RECONNECT_SECONDS = (0.2, 5.0)  # first and longest pause; a random part of it is slept

Connect = Callable[[], Awaitable[Session]]
log = structlog.get_logger()


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
        self._connect = connect or functools.partial(
            AmqpSession.open, amqp_url, f"api {self.process}", queue_type=queue_type
        )
        self.queue_type = queue_type
        self._sessions = 0
        self._session: Session | None = None
        self._connection_task: asyncio.Task[None] | None = None
        self._streams: dict[str, Stream] = {}  # in the order of submission
        self._broadcasts = Broadcasts()
        self._lost = 0.0  # when the last session ended (loop time)
        self.conversations = ConversationEvents(self.process)
        self.metrics = MetricsExchange(self.process)
        self._nodes = NodeWatch(self.process, self._notify_changed)
        self.hosts = HostWatch(self.process)
        self.edges = EdgeWatch(self.process, self._notify_changed)
        self.reports = BrokerReports(self.process)
        self.reports.listen(self.edges.on_overview)
        self.announcements = Announcements(self.process)
        self.job_watch = JobWatch(self.process, self._nodes.states)
        self.drills = DrillWatch(self.process, self._streams)
        self._subscriptions = (
            self.conversations,
            self.metrics,
            self.hosts,
            self.reports,
            self.announcements,
            self.job_watch,
            self.drills,
        )
        self._tokens = ReplyTokens()
        self._router = FrameRouter(
            self._streams,
            self._broadcasts,
            self._tokens,
            send_to_node=self._send_to_node,
            start_over=self._start_over,
            drills=self.drills,
        )
        self._changes = asyncio.Event()

    async def start(self) -> None:
        """Connects in the background, with back-off."""
        self._connection_task = asyncio.create_task(self._keep_connected(), name="broker client")

    async def stop(self) -> None:
        """Ends the connection; open streams fail."""
        if self._connection_task is not None:
            self._connection_task.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await self._connection_task
        self._fail_streams(older_than=-1.0)

    @property
    def connected(self) -> bool:
        """True if a job could be submitted now."""
        return self._session is not None and not self._session.blocked

    async def responds(self) -> bool:
        """Whether the broker answers on both connections.

        Call it with a deadline: on a connection that was cut off without being closed it does not
        return before the heartbeats are missed.
        """
        session, queue = self._session, self._reply_queue
        if session is None:
            return False
        try:
            exists = await session.exists(queue)
            await session.publish("", f"{queue}.probe", b"")  # no such queue: it is returned
        except BrokerError:
            return False
        return exists

    async def open_session(self) -> Session:
        """A further session to the same broker; the caller closes it. Raises BrokerError."""
        return await self._connect()

    async def submit(self, job: Job) -> Stream:
        """Publishes the job and returns once the broker has it.

        Fills in `reply_to`, and a seed if there is none. From then on the stream outlives a lost
        connection: the job is published again. Raises Unavailable, or NoTree if no root is bound
        for its model (which may be no routing key).
        """
        if not names.is_amqp_name(job.model):
            raise NoTree(job.model)
        session = await self._take_session()
        if job.sampling.seed is None:
            sampling = msgspec.structs.replace(job.sampling, seed=random.getrandbits(63))
            job = msgspec.structs.replace(job, sampling=sampling)
        stream = Stream(job, self._forget)
        self._open(stream)
        confirmed = self._publish(session, job)
        try:
            # a frame proves that the broker has the job, and may come before the confirm
            await asyncio.wait(
                {confirmed, stream.accepted},
                timeout=CONFIRM_SECONDS,
                return_when=asyncio.FIRST_COMPLETED,
            )
            if confirmed.done():
                routed = confirmed.result()
            else:
                routed = stream.accepted.done() and stream.accepted.result()
        except (BrokerError, asyncio.CancelledError) as error:
            self._forget(stream)
            if isinstance(error, asyncio.CancelledError):
                raise
            raise Unavailable("the broker could not take the job") from error
        if routed:
            return stream
        if confirmed.done():
            self._close(stream)
            raise NoTree(job.model)
        self._forget(stream)
        if session.blocked:
            raise Unavailable(ALARM)
        raise Unavailable("the broker did not take the job in time")

    @property
    def refused_frames(self) -> int:
        """Frames that were dropped because their senders were not given the job."""
        return self._router.refused

    def stream(self, request_id: str) -> Stream | None:
        """The open stream of that request, if it is read here."""
        return self._streams.get(request_id)

    def cancel(self, request_id: str, user: str) -> None:
        """Cancels that user's job wherever it is.

        If it is read here its stream ends at once. If another process reads it and the broker is
        away, nothing happens.
        """
        stream = self._streams.get(request_id)
        if stream is not None and stream.job.user == user:
            self._forget(stream)
            stream.push(
                Finished(
                    request_id=request_id,
                    seq=NO_RUN,
                    reason="cancelled",
                    completion_tokens=stream.tokens,
                )
            )
        elif self._session is not None:
            self._session.publish(
                names.CONTROL_EXCHANGE, "", encode(Cancel(request_id=request_id, user=user))
            )

    def nodes(self) -> dict[str, NodeState]:
        """The recent states of nodes, by name; their times are on this machine's clock."""
        return self._nodes.states.recent()

    def supply(self, model: str) -> ModelSupply:
        """What the nodes of `nodes()` offer for the model."""
        return self._nodes.states.supply(model)

    def clock_differences(self) -> dict[str, float]:
        """Seconds by which the clock of each node in `nodes()` is ahead of this machine's."""
        return self._nodes.states.clock_differences()

    def lost_nodes(self) -> frozenset[str]:
        """The nodes that fell silent without having said that they end."""
        return self._nodes.states.lost()

    async def changed(self) -> None:
        """Returns when nodes() or `connected` changes after this call."""
        await self._changes.wait()

    async def control(self, node: str, message: AnyControl) -> bool:
        """Sends a message to a node; False if there is no such node. Raises Unavailable."""
        if not names.is_node_name(node):
            return False
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
            depths = {queue: await self._session.depth(queue) for queue in queues}
        except BrokerError as error:
            raise Unavailable(str(error)) from error
        return {queue: depth for queue, depth in depths.items() if depth is not None}

    async def _take_session(self) -> Session:
        """The session, after a short wait if there is none. Raises Unavailable."""
        if self._session is None:
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(SUBMIT_SECONDS):
                    while self._session is None:
                        await self.changed()
        if self._session is None:
            raise Unavailable("the broker is not connected")
        if self._session.blocked:
            raise Unavailable(ALARM)
        return self._session

    async def _keep_connected(self) -> None:
        pause, longest = RECONNECT_SECONDS
        while True:
            try:
                session = await self._connect()
                reason = await self._serve(session)
                pause = RECONNECT_SECONDS[0]
                log.warning("broker connection lost", reason=str(reason))
                self._report_waiting("the connection to the broker was lost; reconnecting")
            except BrokerError as error:
                log.warning("broker not reachable", reason=str(error))
            self._fail_streams(older_than=PATIENCE_SECONDS)
            await asyncio.sleep(pause * random.uniform(0.5, 1.0))
            pause = min(longest, pause * 2)

    async def _serve(self, session: Session) -> BrokerError:
        """Uses the session until it is lost; returns why. Raises BrokerError if the setup fails."""
        alarm = asyncio.create_task(self._refuse_when_blocked(session), name="alarm")
        checking = asyncio.create_task(self._nodes.check(session), name="registered nodes")
        try:
            await declare_shared(session)
            # A new queue for each session: frames for the last one come back as undeliverable.
            self._sessions += 1
            await session.declare_queue(self._reply_queue, exclusive=True)
            await hear_joined(session, self._reply_queue, self._reply_queue)
            await session.consume(
                self._reply_queue, self._router.on_frames, prefetch=REPLY_PREFETCH
            )
            for subscription in (*self._subscriptions, self._nodes, self.edges):
                await subscription.open(session)
            self._broadcasts.open(session)
            self._session = session
            for stream in list(self._streams.values()):
                self._submit_again(session, stream)
            self._notify_changed()
            log.info("broker connected", process=self.process, open_requests=len(self._streams))
            return await asyncio.shield(session.closed)
        finally:
            self._session = None
            for subscription in self._subscriptions:
                subscription.close()
            self._lost = asyncio.get_running_loop().time()
            self._broadcasts.close()
            self._notify_changed()
            for task in (alarm, checking):
                task.cancel()
            await asyncio.gather(alarm, checking, return_exceptions=True)
            await session.close()

    @property
    def _reply_queue(self) -> str:
        return names.reply(f"{self.process}.{self._sessions}")

    async def _refuse_when_blocked(self, session: Session) -> None:
        """During an alarm the broker confirms nothing: waiting submits are refused."""
        while True:
            await session.blocking.wait()
            for stream in self._streams.values():
                stream.refuse()
            await session.flowing.wait()

    # ---- open streams

    def _open(self, stream: Stream) -> None:
        self._streams[stream.request_id] = stream

    def _close(self, stream: Stream) -> bool:
        """False if it was closed already."""
        if self._streams.get(stream.request_id) is not stream:
            return False
        del self._streams[stream.request_id]
        return True

    def _publish(self, session: Session, job: Job) -> asyncio.Future[bool]:
        token = self._tokens.token(job.request_id)
        job = msgspec.structs.replace(job, reply_to=self._reply_queue, reply_token=token)
        return session.publish(names.JOBS_EXCHANGE, job.model, encode_copy(job), persistent=True)

    def _submit_again(self, session: Session, stream: Stream, *, restarted: bool = False) -> None:
        """Publishes the job again, to continue where its reader is.

        The copy in the tree comes to nothing: its reply queue is gone, or its run is useless.
        `restarted`: the node must request to resume, and so hears of the lost runs.
        """

        def confirmed(outcome: asyncio.Future[bool]) -> None:
            if outcome.cancelled():
                return
            error = outcome.exception()
            if isinstance(error, Unsendable):
                stream.fail("internal", str(error))
            elif error is None and not outcome.result():
                stream.fail("no_node", f"the tree of model {stream.job.model!r} is gone")

        job = msgspec.structs.replace(stream.start_over(), restarted=restarted)
        self._publish(session, job).add_done_callback(confirmed)

    def _start_over(self, stream: Stream) -> None:
        if self._session is not None:
            self._submit_again(self._session, stream, restarted=True)

    def _send_to_node(self, node: str, message: ResumeGrant | Cancel) -> None:
        if self._session is not None:
            self._session.publish("", names.inbox(node), encode(message))

    def _report_waiting(self, reason: str) -> None:
        for stream in self._streams.values():
            stream.push(Waiting(request_id=stream.request_id, node="", reason=reason))

    def _fail_streams(self, older_than: float) -> None:
        """Fails all streams if the broker has been away for longer."""
        if asyncio.get_running_loop().time() - self._lost > older_than:
            for stream in list(self._streams.values()):
                stream.fail("internal", "the connection to the broker was lost")

    def _forget(self, stream: Stream) -> None:
        """Closes the stream; a job that has not ended is cancelled in every copy made here.

        Another process may have taken the request over: its copies have higher attempts.
        """
        if not self._close(stream):
            return
        if self.drills.tally is not None:
            self.drills.on_closed(stream)
        if not stream.ended:
            self._broadcasts.send(Cancel(request_id=stream.request_id, before=stream.attempt + 1))

    def _notify_changed(self) -> None:
        changes, self._changes = self._changes, asyncio.Event()
        changes.set()
