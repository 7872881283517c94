"""Frames on their way to API processes, coalesced: one message carries frames of many requests.

Frames of two turns of the event loop share a message, because a message costs far more than a frame
in it. Messages with text are also paced, more slowly the more text there is. The end of an answer
is not: a user waits for it.
"""

import asyncio
from collections import defaultdict
from collections.abc import Callable

import msgspec
import structlog

from broker.encoding import encode
from broker.errors import Unsendable
from broker.session import Session
from broker.wire import NO_RUN, AnyFrame, Failed, Finished, Frames

# Between two messages with text; the first after a pause goes at once.
MIN_PACE_SECONDS, MAX_PACE_SECONDS = 0.002, 0.010
FRAME_SECONDS = 0.0005  # of pace for each frame of the last flush, within those bounds
MESSAGE_FRAMES = 256
MESSAGE_BYTES = 4 * 1024 * 1024  # above it frames with many logprobs go in several messages

OnSent = Callable[[bool], None]
log = structlog.get_logger()


class Outbox:
    """Collects frames by reply queue and publishes them.

    `on_gone(queue)` is called when nobody reads a queue any more.
    """

    def __init__(self, session: Session, on_gone: Callable[[str], None]) -> None:
        self._session = session
        self._on_gone = on_gone
        self._loop = asyncio.get_running_loop()
        self._frames: defaultdict[str, list[tuple[AnyFrame, OnSent | None]]] = defaultdict(list)
        self._timer: asyncio.Handle | None = None
        self._paced = False  # the scheduled flush waits for its time, not for the end of this turn
        self._flushed = 0.0
        self._pace = MIN_PACE_SECONDS

    def put(
        self, queue: str, frame: AnyFrame, sent: OnSent | None = None, *, token: str = ""
    ) -> None:
        """Sends `frame` soon. `token`: its job's; see broker.reply_tokens.

        `sent(True)` is called once the broker has it, `sent(False)` if nobody reads the queue; it
        is not called if the session is lost first.
        """
        if token and (frame.seq == NO_RUN or self._session.joined is not None):
            frame = msgspec.structs.replace(frame, token=token)
        self._frames[queue].append((frame, sent))
        ends = isinstance(frame, Finished | Failed)
        if self._timer is not None and not (ends and self._paced):
            return
        if self._timer is not None:
            self._timer.cancel()
        wait = self._flushed + self._pace - self._loop.time()
        self._paced = wait > 0 and not ends
        if self._paced:
            self._timer = self._loop.call_later(wait, self._flush)
        else:
            self._timer = self._loop.call_soon(self._flush_next_turn)

    def _flush_next_turn(self) -> None:
        """The end of a short answer comes a turn after its text: they share a message."""
        self._timer = self._loop.call_soon(self._flush)

    def _flush(self) -> None:
        self._timer = None
        self._flushed = self._loop.time()
        frames, self._frames = self._frames, defaultdict(list)
        pace = FRAME_SECONDS * sum(map(len, frames.values()))
        self._pace = min(MAX_PACE_SECONDS, max(MIN_PACE_SECONDS, pace))
        for queue, entries in frames.items():
            for start in range(0, len(entries), MESSAGE_FRAMES):
                self._publish(queue, entries[start : start + MESSAGE_FRAMES])

    def _publish(self, queue: str, entries: list[tuple[AnyFrame, OnSent | None]]) -> None:
        body = encode(Frames(frames=tuple(frame for frame, _ in entries)))
        if len(body) > MESSAGE_BYTES and len(entries) > 1:
            half = len(entries) // 2
            self._publish(queue, entries[:half])
            self._publish(queue, entries[half:])
            return
        callbacks = [sent for _, sent in entries if sent is not None]

        def confirmed(outcome: asyncio.Future[bool]) -> None:
            if outcome.cancelled():
                return
            error = outcome.exception()
            if isinstance(
                error, Unsendable
            ):  # the reader misses these frames and restarts the jobs
                log.error("frames cannot be sent", queue=queue[:255], reason=str(error))
            elif error is not None:
                return  # the session is lost; the jobs are delivered again
            routed = error is not None or outcome.result()
            for sent in callbacks:
                sent(routed)
            if not routed:
                self._on_gone(queue)

        self._session.publish("", queue, body).add_done_callback(confirmed)
