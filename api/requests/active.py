"""The jobs whose answers this process reads, found by their request id as long as anybody holds the answer."""

import asyncio
import time
from weakref import WeakValueDictionary

import structlog

from broker.client import Client
from broker.stream import Stream

log = structlog.get_logger("canopy.api")

LATE_EVERY = 0.5  # seconds between two looks at the deadlines
GRACE = 1.0  # seconds after its deadline in which a job's node may say so itself


class Followed:
    """See the module. Streams are held weakly: an answer that was read, or given up, takes no memory here."""

    def __init__(self, client: Client) -> None:
        self._client = client
        self._streams: WeakValueDictionary[str, Stream] = WeakValueDictionary()

    def add(self, stream: Stream) -> None:
        """A job was submitted."""
        self._streams[stream.request_id] = stream

    def get(self, request_id: str) -> Stream | None:
        """The job's stream, if it is read here."""
        return self._streams.get(request_id)

    async def end_late(self) -> None:
        """Ends what is past its deadline, for ever.

        Nodes do that, too; but a job may be where no node looks at it, such as in the queue of a root that is away.
        """
        while True:
            await asyncio.sleep(LATE_EVERY)
            for stream in list(self._streams.values()):
                if not stream.ended and is_late(stream, time.monotonic()):
                    self._end(stream)

    def _end(self, stream: Stream) -> None:
        """Fails the stream for its reader, and cancels the job wherever it is."""
        log.info("ended at its deadline", request_id=stream.request_id, node=stream.node)
        state = "ran" if stream.started else "waited"
        stream.fail("expired", f"the deadline of the request passed while it {state}")
        self._client.cancel(stream.request_id, stream.job.user)


def is_late(stream: Stream, now: float) -> bool:
    """True if the job's node should have ended it. `now`: time.monotonic()."""
    return stream.expires is not None and now > stream.expires + GRACE
