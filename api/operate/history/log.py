"""One API process's part of the history: its own requests, counted in memory, written now and then.

Nothing is done for a token, and nothing in the database for a request. A process that is killed
loses WRITE_EVERY seconds. The process that is the recorder also notes how many slots are in use.
"""

import asyncio
import time
from collections.abc import Callable, Collection, Iterable, Sequence
from datetime import UTC, datetime

import structlog
from asgiref.sync import sync_to_async
from django.db import DatabaseError, connections

from api.metrics.instruments import outcome
from api.operate.history import store
from api.operate.history.counts import EndedRequest, Tally
from api.operate.history.models import HistoryRow
from api.operate.history.store import MINUTE
from api.operate.usage import store as usage
from broker.client import Client
from broker.node_state import NodeState
from broker.stream import Stream
from broker.wire import Finished

LOOK_SECONDS = 1.0  # between two looks at the nodes' slots
LONGEST_LOOK = 5.0  # for which a look may count; a process that stood still knows nothing of more
WRITE_EVERY = 10.0  # seconds
MOST_MINUTES = 30  # that wait for a database that is away; older ones are lost
KEEP_EVERY = 600.0  # seconds between two looks for complete hours and old rows

log = structlog.get_logger("canopy.api")


class HistoryLog:
    """Counts this process's requests. `wall` gives Unix seconds."""

    def __init__(self, process: str, wall: Callable[[], float] = time.time) -> None:
        self._process = process[-100:]
        self._wall = wall
        self._minutes: dict[int, Tally] = {}
        self._changed: set[int] = set()  # minutes that are not stored as they are here
        self._writing = asyncio.Lock()
        self._stopped = False

    def closed(self, stream: Stream) -> None:
        """The stream's job has ended, or its reader left.

        After `stop` the process only hands its answers over: these go on elsewhere.
        """
        if not self._stopped:
            self._minute().add(ended(stream, time.monotonic()))

    def use_of_slots(self, states: Iterable[NodeState], seconds: float) -> None:
        """Counts slots as used the way these states say, for so many seconds."""
        minute = self._minute()
        for state in states:
            if state.engine == "none" or state.status not in ("idle", "busy"):
                continue
            for counts in (minute.of("node", state.name), minute.of("model", state.model)):
                counts.busy_seconds += min(state.running, state.slots) * seconds
                counts.slot_seconds += state.slots * seconds

    async def write(self) -> None:
        """Stores what has been counted since the last time; it stays if the database is away."""
        async with self._writing:
            changed, self._changed = self._changed, set()
            rows = []
            for start in changed:
                rows += store.rows_of(MINUTE, start, self._minutes[start], self._process)
            try:
                # Requests look up keys in the thread that all others share: they must not wait.
                writing = sync_to_async(_replace_minutes_alone, thread_sensitive=False)
                await writing(changed, rows, self._process)
            except DatabaseError as error:  # fate: it is written the next time
                log.warning("the history is written later", reason=str(error))
                self._changed |= changed
            except asyncio.CancelledError:  # a reader left: nobody knows whether it is stored
                self._changed |= changed
                raise
            self._forget_minutes()

    async def write_repeatedly(self) -> None:
        """Never ends."""
        while True:
            await asyncio.sleep(WRITE_EVERY)
            await self.write()

    async def stop(self) -> None:
        """Stores the open minute; what ends from now on is not counted."""
        self._stopped = True
        await self.write()

    def _minute(self) -> Tally:
        """The open minute, to be added to."""
        start = int(self._wall()) // MINUTE * MINUTE
        self._changed.add(start)
        return self._minutes.setdefault(start, Tally())

    def _forget_minutes(self) -> None:
        """Forgets those that are over and stored, and the oldest if too many are not stored."""
        open_minute = int(self._wall()) // MINUTE * MINUTE
        waiting = sorted(self._changed)
        self._changed = set(waiting[-MOST_MINUTES:])
        for start in list(self._minutes):
            if start != open_minute and start not in self._changed:
                del self._minutes[start]


def ended(stream: Stream, now: float) -> EndedRequest:
    """What counts of a stream that was closed `now` (time.monotonic())."""
    began = now if stream.began is None else stream.began
    prompt_tokens, completion_tokens = 0, stream.tokens
    if isinstance(stream.end, Finished):
        prompt_tokens = stream.end.prompt_tokens
        completion_tokens = stream.end.completion_tokens
    return EndedRequest(
        model=stream.job.model,
        user=stream.job.user,
        node=stream.node,
        outcome=outcome(stream),
        wait=began - stream.opened,
        service=None if stream.began is None else now - began,
        prompt_tokens=prompt_tokens,
        completion_tokens=completion_tokens,
    )


async def watch_slots(client: Client, history: HistoryLog) -> None:
    """Notes the use of slots, in the recorder alone. Never ends."""
    before = time.monotonic()
    while True:
        await asyncio.sleep(LOOK_SECONDS)
        now = time.monotonic()
        if client.reports.is_recorder:
            history.use_of_slots(client.nodes().values(), min(now - before, LONGEST_LOOK))
        before = now


async def keep_repeatedly(client: Client) -> None:
    """Makes hours of minutes and removes what is old, in the recorder alone. Never ends."""
    while True:
        await asyncio.sleep(KEEP_EVERY)
        if client.reports.is_recorder:
            await keep(time.time())


async def keep(now: float) -> None:
    """Makes hours of minutes and removes what is old."""
    try:
        # An hour takes a second: not in the thread that all others share.
        await sync_to_async(_roll_up_alone, thread_sensitive=False)(int(now))
        while await sync_to_async(store.remove_old)(int(now)):
            pass
        await sync_to_async(usage.remove_old)(datetime.fromtimestamp(now, UTC).date())
    except DatabaseError as error:  # fate: tried again at the next turn
        log.warning("the history is tidied later", reason=str(error))


def _replace_minutes_alone(
    starts: Collection[int], rows: Sequence[HistoryRow], process: str
) -> None:
    """Closes the connection that this thread has opened."""
    try:
        store.replace_minutes(starts, rows, process)
    finally:
        connections.close_all()


def _roll_up_alone(now: int) -> None:
    """Closes the connection that this thread has opened."""
    try:
        store.roll_up(now)
    finally:
        connections.close_all()
