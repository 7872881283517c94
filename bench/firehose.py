"""Which node ran a request, and when: read from RabbitMQ's firehose, which copies every message it takes or delivers.

Neither the HTTP answers nor the nodes' states tell that (a state is a count, and up to 50 ms old). The firehose does,
without a change to Canopy. It costs the broker work, so times under it are a little longer than without.
Moments are those at which the copy arrives here: a fraction of a millisecond late on an idle machine, and a few
milliseconds on a busy one.
"""

import asyncio
import contextlib
import time
from collections.abc import AsyncIterator
from dataclasses import dataclass, field

import httpx

from bench.instance import Instance
from bench.occupancy import Times
from broker.amqp import AmqpSession
from broker.session import Delivery
from broker.wire import AnyFrame, Failed, Finished, Frames, Job, Start, Waiting, decode
from topology import names

_EXCHANGE = "amq.rabbitmq.trace"
_QUEUE = "bench.firehose"
_ENTERED = f"publish.{names.JOBS_EXCHANGE}"
_TAKEN = f"deliver.{names.NODE_PREFIX}"
_ANSWERED = f"deliver.{names.REPLY_PREFIX}"
_PREFETCH = 1000


@dataclass(slots=True)
class Trail:
    """What was seen of one request, in seconds of time.monotonic."""

    entered: float | None = None
    taken: list[tuple[str, float]] = field(
        default_factory=list
    )  # node, moment: every queue it was taken from
    held_by: list[str] = field(default_factory=list)  # nodes that said: it waits here
    node: str | None = None  # the one that ran it
    started: float | None = None
    ended: float | None = None

    @property
    def path(self) -> str:
        """The nodes it passed."""
        return " > ".join(node for node, _ in self.taken)

    def times(self) -> Times | None:
        """None if something of it was not seen.

        A node that has a free slot runs a job the moment it takes it. One that held the job runs it later: then the
        start is that of the first decoding step, which for a model is a prompt's reading too late.
        """
        if self.entered is None or self.started is None or self.ended is None or self.node is None:
            return None
        taken = [at for node, at in self.taken if node == self.node]
        started = taken[-1] if taken and self.node not in self.held_by else self.started
        return Times(
            self.entered, max(self.entered, min(started, self.started)), self.ended, self.node
        )


class Firehose:
    """The trails of all requests since it was opened, by request id."""

    def __init__(self) -> None:
        self.trails: dict[str, Trail] = {}
        self._seen = asyncio.Event()

    async def until_ended(self, requests: list[str], seconds: float = 5.0) -> bool:
        """Waits for the last frame of each of them; False if one did not come in time."""
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(seconds):
                while not all(self._trail(each).ended for each in requests):
                    self._seen.clear()
                    await self._seen.wait()
                return True
        return False

    def on_message(self, delivery: Delivery) -> None:
        """Takes a copy."""
        at = time.monotonic()
        delivery.ack()
        key = delivery.routing_key
        if key.startswith(_ANSWERED):
            for frame in decode(delivery.body, Frames).frames:
                self._on_frame(frame, at)
        elif key == _ENTERED:
            self._trail(decode(delivery.body, Job).request_id).entered = at
        else:
            self._trail(decode(delivery.body, Job).request_id).taken.append(
                (key.removeprefix(_TAKEN), at)
            )
        self._seen.set()

    def _on_frame(self, frame: AnyFrame, at: float) -> None:
        trail = self._trail(frame.request_id)
        match frame:
            case Waiting(node=node):
                trail.held_by.append(node)
            case Start(node=node):
                trail.node, trail.started = node, at
            case Finished() | Failed():
                trail.ended = at

    def _trail(self, request_id: str) -> Trail:
        return self.trails.setdefault(request_id, Trail())


@contextlib.asynccontextmanager
async def watching(canopy: Instance) -> AsyncIterator[Firehose]:
    """Switches the firehose on for as long as the block runs. Raises httpx.HTTPError, BrokerError."""
    firehose = Firehose()
    session = await AmqpSession.open(canopy.amqp("admin"), "bench firehose")
    try:
        await session.declare_queue(_QUEUE, exclusive=True)
        for key in (_ENTERED, f"{_TAKEN}#", f"{_ANSWERED}#"):
            await session.bind(_QUEUE, _EXCHANGE, key)
        await session.consume(_QUEUE, firehose.on_message, prefetch=_PREFETCH)
        await _switch(canopy, on=True)
        try:
            yield firehose
        finally:
            await _switch(canopy, on=False)
    finally:
        await session.close()


async def _switch(canopy: Instance, *, on: bool) -> None:
    async with httpx.AsyncClient(trust_env=False, timeout=10) as http:
        answer = await http.put(
            f"{canopy.record['management']}/api/vhosts/%2F", json={"tracing": on}
        )
        answer.raise_for_status()
