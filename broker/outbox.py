"""Frames on their way to API processes, coalesced: one message carries what many requests have to say.

What happens in two turns of the event loop goes in one message. Text of answers that go on is paced beyond that, the
more the more of it there is: a message costs far more than a frame in it. The end of an answer is not: somebody waits
for it.
"""

import asyncio
from collections import defaultdict
from collections.abc import Callable, Iterable

import structlog

from broker.session import Session, Unsendable
from broker.wire import AnyFrame, Failed, Finished, Frames, encode

PACE_SECONDS = (
    0.002,
    0.010,
)  # least and most between two messages with text; the first after a pause goes at once
FRAME_SECONDS = 0.0005  # for each frame of the last message, in between
MESSAGE_FRAMES = 256

Sent = Callable[[bool], None]
log = structlog.get_logger()


class Outbox:
    """Collects frames per reply queue and publishes them. `on_gone(queue)` is called when nobody reads a queue."""

    def __init__(self, session: Session, on_gone: Callable[[str], None]) -> None:
        self._session = session
        self._on_gone = on_gone
        self._loop = asyncio.get_running_loop()
        self._frames: defaultdict[str, list[tuple[AnyFrame, Sent | None]]] = defaultdict(list)
        self._timer: asyncio.Handle | None = None
        self._paced = False  # the next flush waits for its time, not for the end of this turn
        self._flushed = 0.0
        self._pace = PACE_SECONDS[0]

    def put(self, queue: str, frame: AnyFrame, sent: Sent | None = None) -> None:
        """Sends `frame` soon. `sent(True)` is called once the broker has it, `sent(False)` if nobody reads the
        queue; neither is called when the session is lost first.
        """
        self._frames[queue].append((frame, sent))
        ends = isinstance(frame, Finished | Failed)
        if self._timer is not None and not (ends and self._paced):
            return
        if self._timer is not None:
            self._timer.cancel()
        wait = self._flushed + self._pace - self._loop.time()
        self._paced = wait > 0 and not ends
        self._timer = (
            self._loop.call_later(wait, self._flush)
            if self._paced
            else self._loop.call_soon(self._soon)
        )

    def _soon(self) -> None:
        """One turn later: a short answer's end comes a turn after its text, and they fit into one message."""
        self._timer = self._loop.call_soon(self._flush)

    def _flush(self) -> None:
        self._timer = None
        self._flushed = self._loop.time()
        frames, self._frames = self._frames, defaultdict(list)
        least, most = PACE_SECONDS
        self._pace = min(most, max(least, FRAME_SECONDS * sum(map(len, frames.values()))))
        for queue, entries in frames.items():
            for start in range(0, len(entries), MESSAGE_FRAMES):
                self._publish(queue, entries[start : start + MESSAGE_FRAMES])

    def _publish(self, queue: str, entries: Iterable[tuple[AnyFrame, Sent | None]]) -> None:
        body = encode(Frames(frames=tuple(frame for frame, _ in entries)))
        callbacks = [sent for _, sent in entries if sent is not None]

        def confirmed(outcome: asyncio.Future[bool]) -> None:
            if outcome.cancelled():
                return
            error = outcome.exception()
            if isinstance(
                error, Unsendable
            ):  # their reader misses these frames and starts the jobs over
                log.error("frames cannot be sent", queue=queue[:255], reason=str(error))
            elif error is not None:
                return  # the session is lost; the jobs' deliveries come again
            routed = error is not None or outcome.result()
            for sent in callbacks:
                sent(routed)
            if not routed:
                self._on_gone(queue)

        self._session.publish("", queue, body).add_done_callback(confirmed)
