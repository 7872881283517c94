"""One API process's part in drills: it counts what becomes of its own requests, and tells.

The process that conducts a drill hears the counts of all. Between drills this costs a comparison a
frame.
"""

import asyncio
import time
from collections.abc import Collection, Iterable, Mapping
from dataclasses import asdict

import structlog

from broker.drill_messages import (
    AnyDrillMessage,
    DrillCounts,
    EndDrill,
    NodeKilled,
    PrepareDrill,
)
from broker.drill_tally import DrillTally
from broker.encoding import decode, encode
from broker.errors import BrokerError, DecodeError, Unavailable
from broker.session import Delivery, Session
from broker.stream import Stream
from broker.wire import AnyFrame, Delta, Interrupted, ResumeRequest, Start
from topology import names

PREFETCH = 1000
ANSWER_SECONDS = 2.0  # for every API process to say that it counts
TELL_EVERY = 0.1  # seconds between two counts of one process
LONGEST_SECONDS = 900.0  # a drill whose conductor has died is forgotten

log = structlog.get_logger()


class DrillWatch:
    """See the module. `streams`: the open ones of this process, by request id."""

    def __init__(self, process: str, streams: Mapping[str, Stream]) -> None:
        self.process = process
        self.tally: DrillTally | None = None  # of the drill that goes on
        self._streams = streams
        self._session: Session | None = None
        self._forgetting: asyncio.TimerHandle | None = None
        self._telling: asyncio.TimerHandle | None = None
        self._conducted = ""  # the drill of this process
        self._counts: dict[str, DrillCounts] = {}  # of that, by process
        self._changes = asyncio.Event()

    async def open(self, session: Session) -> None:
        """Listens on a new session. Raises BrokerError."""
        queue = names.drills_watch(self.process)
        await session.declare_queue(queue, exclusive=True)
        await session.bind(queue, names.EVENTS_EXCHANGE, names.DRILL_KEY)
        await session.consume(queue, self._on_message, prefetch=PREFETCH)
        self._session = session

    def close(self) -> None:
        """The session is lost: what this process counts meanwhile is told afterwards."""
        self._session = None

    # ---- what the streams do

    def on_resume(self, stream: Stream, request: ResumeRequest) -> None:
        """A node asks where to continue, and will be granted a new attempt."""
        if self.tally is not None:
            died = stream.running and request.incarnation != stream.incarnation
            self.tally.on_resume(stream.request_id, died=died)
            self._tell_soon()

    def on_frame(self, stream: Stream, frame: AnyFrame) -> None:
        """The stream has taken this frame, or had it already."""
        if self.tally is None:
            return
        if isinstance(frame, Delta):
            self.tally.on_text(stream.request_id, time.monotonic())
        elif isinstance(frame, Start):
            self.tally.on_run(stream.request_id, frame.node, time.monotonic())
        elif isinstance(frame, Interrupted):
            self.tally.on_interrupted(stream.request_id)
        else:
            return
        self._tell_soon()

    def on_closed(self, stream: Stream) -> None:
        """The stream has ended, or its reader has left."""
        if self.tally is not None:
            self.tally.on_closed(stream.request_id, stream.end, time.monotonic())
            self._tell_soon()

    # ---- conducting a drill

    async def prepare(self, number: str, node: str, processes: Iterable[str]) -> None:
        """Has every API process follow the node's jobs.

        `processes`: those that are known; others may take part. Raises Unavailable if one of them
        is there and does not answer, as its requests would be missing in the result.
        """
        message = PrepareDrill(process=self.process, number=number, node=node)
        self._conducted, self._counts = number, {}
        self._publish(message)
        expected = {self.process, *processes}
        await self._until_answered(expected)
        silent = [name for name in sorted(expected) if not await self._is_gone(name, message)]
        await self._until_answered(set(silent))
        missing = [name for name in silent if name not in self._counts]
        if missing:
            self.end()
            raise Unavailable(f"the API process {missing[0]} does not say that it counts")

    def killed(self, running: Collection[str], waiting: Collection[str]) -> None:
        """Tells all that the node is killed now, and which jobs it had."""
        self._publish(
            NodeKilled(
                process=self.process,
                number=self._conducted,
                running=tuple(running),
                waiting=tuple(waiting),
            )
        )

    def end(self) -> None:
        """The drill, if one goes on, is over: nobody counts any more."""
        if not self._conducted:
            return
        self._publish(EndDrill(process=self.process, number=self._conducted))
        self._conducted = ""

    def sums(self) -> DrillCounts:
        """All processes' counts together, as they were last told."""
        sums: dict[str, int] = {}
        slowest: list[float] = []
        for counts in self._counts.values():
            for field in _SUMMED:
                sums[field] = sums.get(field, 0) + getattr(counts, field)
            if counts.slowest is not None:
                slowest.append(counts.slowest)
        return DrillCounts(
            process=self.process,
            number=self._conducted,
            slowest=max(slowest, default=None),
            **sums,
        )

    @property
    def processes(self) -> int:
        """How many processes have told their counts."""
        return len(self._counts)

    async def changed(self) -> None:
        """Returns when a process tells its counts after this call."""
        await self._changes.wait()

    async def _until_answered(self, processes: set[str]) -> None:
        try:
            async with asyncio.timeout(ANSWER_SECONDS):
                while not processes <= self._counts.keys():
                    await self.changed()
        except TimeoutError:
            return  # the caller looks who is missing

    async def _is_gone(self, process: str, message: PrepareDrill) -> bool:
        """Whether that process, if it has not answered, has no queue any more."""
        if process in self._counts:
            return True
        if self._session is None:
            raise Unavailable("the broker is not connected")
        try:
            queue = names.drills_watch(process)
            return not await self._session.publish("", queue, encode(message))
        except BrokerError as error:
            raise Unavailable(str(error)) from error

    # ---- what arrives

    def _on_message(self, delivery: Delivery) -> None:
        delivery.ack()
        try:
            message: AnyDrillMessage = decode(delivery.body, AnyDrillMessage)
        except DecodeError as error:
            log.warning("undecodable message about a drill dropped", reason=str(error))
            return
        match message:
            case PrepareDrill():
                self._begin(message)
            case NodeKilled() if self._follows(message.number):
                self._kill(message)
            case EndDrill() if self._follows(message.number):
                self._forget()
            case DrillCounts() if message.number == self._conducted:
                self._counts[message.process] = message
                changes, self._changes = self._changes, asyncio.Event()
                changes.set()

    def _follows(self, number: str) -> bool:
        return self.tally is not None and self.tally.number == number

    def _begin(self, message: PrepareDrill) -> None:
        if not self._follows(message.number):
            self._forget()
            self.tally = DrillTally(message.number, message.node)
            for stream in self._streams.values():
                if stream.running:
                    self.tally.on_run(stream.request_id, stream.node, time.monotonic())
            loop = asyncio.get_running_loop()
            self._forgetting = loop.call_later(LONGEST_SECONDS, self._forget)
        self._tell()

    def _kill(self, message: NodeKilled) -> None:
        """The node's lists are a moment old: here are only jobs whose frames do not say more."""
        tally = self.tally
        if tally is None or tally.killed:
            return
        running = [request for request in message.running if self._is_unheard(request)]
        waiting = [request for request in message.waiting if self._is_unheard(request)]
        tally.kill(time.monotonic(), running, waiting)
        self._tell()

    def _is_unheard(self, request_id: str) -> bool:
        stream = self._streams.get(request_id)
        return stream is not None and not stream.running and not stream.ended

    def _forget(self) -> None:
        self.tally = None
        for timer in (self._forgetting, self._telling):
            if timer is not None:
                timer.cancel()
        self._forgetting = self._telling = None

    def _tell_soon(self) -> None:
        if self._telling is None and self.tally is not None and self.tally.killed:
            self._telling = asyncio.get_running_loop().call_later(TELL_EVERY, self._tell)

    def _tell(self) -> None:
        self._telling = None
        if self.tally is not None:
            counts = asdict(self.tally.counts())
            self._publish(DrillCounts(process=self.process, number=self.tally.number, **counts))

    def _publish(self, message: AnyDrillMessage) -> None:
        if self._session is not None:
            self._session.publish(names.EVENTS_EXCHANGE, names.DRILL_KEY, encode(message))


_SUMMED = (
    "affected",
    "moved",
    "returned",
    "lost",
    "left",
    "open",
    "waiting",
    "waiting_lost",
)
