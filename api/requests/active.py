"""The active requests of this process: streams by request id, failed at their deadline."""

import asyncio
import time
from collections.abc import Collection
from weakref import WeakValueDictionary

import structlog

from broker.client import Client
from broker.stream import Stream

log = structlog.get_logger("canopy.api")

CHECK_EVERY = 0.5  # seconds between checks of the deadlines
GRACE = 1.0  # seconds after its deadline in which a job's node may end it itself


class ActiveRequests:
    """Holds streams weakly: an answer that was read, or given up, takes no memory here."""

    def __init__(self, client: Client) -> None:
        self._client = client
        self._streams: WeakValueDictionary[str, Stream] = WeakValueDictionary()

    def add(self, stream: Stream) -> None:
        """A job was submitted."""
        self._streams[stream.request_id] = stream

    def get(self, request_id: str) -> Stream | None:
        """The job's stream, if this process reads it."""
        return self._streams.get(request_id)

    def users(self) -> set[str]:
        """Whose requests are open, by name."""
        return {stream.job.user for stream in list(self._streams.values()) if not stream.ended}

    def of_user(self, user: str) -> list[str]:
        """The ids of that user's open requests."""
        ids = []
        for request_id, stream in list(self._streams.items()):
            if stream.job.user == user and not stream.ended:
                ids.append(request_id)
        return ids

    def keys(self) -> set[str]:
        """The API keys, by name, that have asked for open requests."""
        streams = list(self._streams.values())
        return {stream.job.key for stream in streams if stream.job.key and not stream.ended}

    def with_keys(self, names: Collection[str]) -> list[tuple[str, str]]:
        """The ids and users of the open requests that these keys have asked for."""
        found = []
        for request_id, stream in list(self._streams.items()):
            if stream.job.key in names and not stream.ended:
                found.append((request_id, stream.job.user))
        return found

    async def enforce_deadlines(self) -> None:
        """Fails every stream that is past its deadline. Never ends.

        Nodes do that, too; but no node looks at a job in the queue of a root that is away.
        """
        while True:
            await asyncio.sleep(CHECK_EVERY)
            for stream in list(self._streams.values()):
                if not stream.ended and is_late(stream, time.monotonic()):
                    self._expire(stream)

    def _expire(self, stream: Stream) -> None:
        """Fails the stream for its reader, and cancels the job wherever it is."""
        log.info("ended at its deadline", request_id=stream.request_id, node=stream.node)
        state = "ran" if stream.started else "waited"
        stream.fail("expired", f"the deadline of the request passed while it {state}")
        self._client.cancel(stream.request_id, stream.job.user)


def is_late(stream: Stream, now: float) -> bool:
    """True if the job's node should have ended it. `now`: time.monotonic()."""
    return stream.expires is not None and now > stream.expires + GRACE
