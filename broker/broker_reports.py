"""The recorder: one API process at a time reads the broker's management API for all of them.

It holds an exclusive queue, the seat, which the broker gives to one connection alone. The others
hear its reports; when these stop coming they try to take the seat.
"""

import asyncio
import contextlib
import time
from collections.abc import Callable

import structlog

from broker.encoding import encode
from broker.errors import BrokerError, DecodeError, QueueLocked
from broker.operator_messages import BrokerOverview, decode_operator_message
from broker.session import Delivery, Session
from topology import names

PREFETCH = 10
REPORT_SECONDS = 5.0  # between two reports of the recorder
SILENT_SECONDS = 12.0  # without a report: the recorder may be gone

Listener = Callable[[BrokerOverview], None]
log = structlog.get_logger()


class BrokerReports:
    """One API process's part: the latest report, and the seat if this process has it."""

    def __init__(self, process: str) -> None:
        self.process = process
        self.latest: BrokerOverview | None = None
        self._arrived = 0.0  # monotonic clock
        self._session: Session | None = None
        self._seated = False
        self._refused_at = float("-inf")
        self._listeners: list[Listener] = []
        self._changes = asyncio.Event()

    @property
    def age(self) -> float:
        """Seconds since the latest report."""
        return time.monotonic() - self._arrived

    @property
    def is_recorder(self) -> bool:
        """True while this process has the seat."""
        return self._seated

    def listen(self, listener: Listener) -> None:
        """Calls `listener` with each report."""
        self._listeners.append(listener)

    async def first(self, seconds: float) -> BrokerOverview | None:
        """The latest report; waits for the first one, at most that long."""
        if self.latest is None:
            await self.next(seconds)
        return self.latest

    async def next(self, seconds: float) -> None:
        """Returns with the next report, or after that time without one."""
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(seconds):
                await self._changes.wait()

    async def open(self, session: Session) -> None:
        """Listens on a new session. Raises BrokerError."""
        queue = names.overview_watch(self.process)
        await session.declare_queue(queue, exclusive=True)
        await session.bind(queue, names.EVENTS_EXCHANGE, names.OVERVIEW_KEY)
        await session.consume(queue, self._on_report, prefetch=PREFETCH)
        self._session = session

    def close(self) -> None:
        """The session is lost, and the seat with it."""
        self._session = None
        self._seated = False
        self._refused_at = float("-inf")

    async def take_seat(self) -> bool:
        """True if this process is the recorder, which it becomes if nobody else is.

        The broker logs each refusal, so we ask again only when reports have stopped coming.
        """
        session = self._session
        if session is None or self._seated:
            return self._seated
        heard = max(self._arrived, self._refused_at)
        if time.monotonic() - heard < SILENT_SECONDS:
            return False
        try:
            await session.declare_queue(names.RECORDER_QUEUE, exclusive=True)
        except QueueLocked:
            self._refused_at = time.monotonic()
        except BrokerError as error:
            log.info("the recorder's seat cannot be taken now", reason=str(error))
        else:
            self._seated = session is self._session
        return self._seated

    def publish(self, overview: BrokerOverview) -> None:
        """Gives the report to this process and, if the broker is connected, to the others."""
        self._accept(overview)
        if self._session is not None:
            self._session.publish(names.EVENTS_EXCHANGE, names.OVERVIEW_KEY, encode(overview))

    def _on_report(self, delivery: Delivery) -> None:
        delivery.ack()
        try:
            overview = decode_operator_message(delivery.body, BrokerOverview)
        except DecodeError as error:
            log.warning("undecodable overview of the broker dropped", reason=str(error))
            return
        if overview.process != self.process:
            self._accept(overview)

    def _accept(self, overview: BrokerOverview) -> None:
        self.latest = overview
        self._arrived = time.monotonic()
        changes, self._changes = self._changes, asyncio.Event()
        changes.set()
        for listener in self._listeners:
            listener(overview)
