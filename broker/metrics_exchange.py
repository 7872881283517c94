"""The metrics of all API processes, gathered when one of them is scraped.

Nothing is sent between scrapes. A process announces itself when it connects, so the others know
whose answer to wait for; one that does not answer in time is shown as it was last heard, and
forgotten after SILENT_SECONDS.
"""

import asyncio
import time
from collections.abc import Callable
from dataclasses import dataclass

import structlog

from broker.encoding import encode
from broker.errors import DecodeError
from broker.metric_messages import MetricsRequest, ProcessMetrics, decode_metrics
from broker.session import Delivery, Session
from topology import names

PREFETCH = 100
ANSWER_SECONDS = 0.5  # a scrape waits so long for the other processes
SILENT_SECONDS = 30.0  # after which a process that does not answer counts as gone
MAX_PROCESSES = 100

log = structlog.get_logger()


@dataclass(slots=True)
class _Other:
    metrics: ProcessMetrics
    arrived: float  # time.monotonic()


class MetricsExchange:
    """One API process's part. `own()`: what it has counted so far."""

    def __init__(self, process: str) -> None:
        self.process = process
        self._own: Callable[[], ProcessMetrics] | None = None
        self._session: Session | None = None
        self._others: dict[str, _Other] = {}
        self._arrival = asyncio.Event()

    def answer_with(self, own: Callable[[], ProcessMetrics]) -> None:
        """Calls `own` for this process's metrics whenever another process is scraped."""
        self._own = own

    async def open(self, session: Session) -> None:
        """Listens on a new session, announces this process and hears of the others.

        Raises BrokerError.
        """
        queue = names.metrics_watch(self.process)
        await session.declare_queue(queue, exclusive=True)
        await session.bind(queue, names.EVENTS_EXCHANGE, names.METRICS_KEY)
        await session.consume(queue, self._on_message, prefetch=PREFETCH)
        self._session = session
        self._publish_own()
        self._request()

    def close(self) -> None:
        """The session is lost."""
        self._session = None

    async def gather(self) -> list[ProcessMetrics]:
        """The other processes' metrics, as of now where they answer within ANSWER_SECONDS."""
        since = time.monotonic()
        self._forget_silent(since)
        if self._session is not None and self._others:
            self._request()
            try:
                async with asyncio.timeout(ANSWER_SECONDS):
                    while not self._all_since(since):
                        self._arrival.clear()
                        await self._arrival.wait()
            except TimeoutError:
                pass  # those are shown as they were
        return [other.metrics for other in self._others.values()]

    def _all_since(self, since: float) -> bool:
        return all(other.arrived >= since for other in self._others.values())

    def _forget_silent(self, now: float) -> None:
        for process, other in list(self._others.items()):
            if now - other.arrived > SILENT_SECONDS:
                del self._others[process]

    def _request(self) -> None:
        self._send(MetricsRequest(process=self.process))

    def _publish_own(self) -> None:
        if self._own is not None:
            self._send(self._own())

    def _send(self, message: MetricsRequest | ProcessMetrics) -> None:
        if self._session is not None:
            self._session.publish(names.EVENTS_EXCHANGE, names.METRICS_KEY, encode(message))

    def _on_message(self, delivery: Delivery) -> None:
        delivery.ack()
        try:
            message = decode_metrics(delivery.body)
        except DecodeError as error:
            log.warning("undecodable metrics dropped", reason=str(error))
            return
        if message.process == self.process:
            return
        if isinstance(message, MetricsRequest):
            self._publish_own()
            return
        if message.process in self._others or len(self._others) < MAX_PROCESSES:
            self._others[message.process] = _Other(message, time.monotonic())
            self._arrival.set()
