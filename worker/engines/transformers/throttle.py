"""How often a stream is flushed: every token while few streams run, several at once while many do.

Passing one chunk through node, broker and API costs some 50 us whatever its length, so an engine
that makes 20,000 tokens a second would spend two cores on it. A node therefore delivers at most
CHUNKS_PER_SECOND: the more streams run, the longer their chunks. A first token, an end and an error
are never delayed.
"""

from collections.abc import Callable, Collection

import structlog

from worker.engines.base import Chunk, EngineError
from worker.engines.transformers.errors import sequence_error
from worker.engines.transformers.mailbox import Mailbox, merge_chunks
from worker.engines.transformers.scheduler_protocol import StepOutput

CHUNKS_PER_SECOND = 5000

log = structlog.get_logger(__name__)


class StreamThrottle:
    """Stands between the decoding thread, its only user, and `deliver`. `clock`: in seconds."""

    def __init__(self, deliver: Callable[[StepOutput], None], clock: Callable[[], float]) -> None:
        self._deliver = deliver
        self._clock = clock
        self._last_flush: dict[Mailbox, float] = {}  # of the streams that had a token
        self._pending: dict[Mailbox, Chunk] = {}

    def push(self, output: StepOutput, delay: float = 0.0) -> None:
        """Takes what a step made. Call it after every step, also after one that made nothing.

        `delay`: seconds by which the next step takes longer than most: what would be due in its
        middle is flushed before it.
        """
        now = self._clock()
        due: StepOutput = []
        for mailbox, item in output:
            try:
                due += self._due_now(mailbox, item, now)
            except Exception as error:
                # the reader would miss a part of the answer, so the answer ends here
                log.exception("a chunk could not be passed on")
                self._forget(mailbox)
                due.append((mailbox, sequence_error(error)))
        due += self._flush_pending(now, delay)
        if due:
            self._deliver(due)

    def retain(self, streams: Collection[Mailbox]) -> None:
        """Forgets all other streams, which were cancelled. Costs nothing while there are none."""
        if len(self._last_flush) > len(streams):
            for mailbox in self._last_flush.keys() - set(streams):
                self._forget(mailbox)

    def _due_now(self, mailbox: Mailbox, item: Chunk | EngineError, now: float) -> StepOutput:
        """What to deliver at once of a new item and the stream's pending chunk."""
        pending = self._pending.pop(mailbox, None)
        if isinstance(item, EngineError):
            self._forget(mailbox)
            if pending is None:
                return [(mailbox, item)]
            return [(mailbox, pending), (mailbox, item)]
        chunk = item
        if pending is not None:
            chunk = merge_chunks(pending, item)
        if chunk.finish is not None:
            self._forget(mailbox)
            return [(mailbox, chunk)]
        if mailbox in self._last_flush:
            self._pending[mailbox] = chunk
            return []
        self._last_flush[mailbox] = now
        return [(mailbox, chunk)]

    def _flush_pending(self, now: float, delay: float) -> StepOutput:
        """The chunks that have been pending for long enough."""
        oldest = now + delay - len(self._last_flush) / CHUNKS_PER_SECOND
        due: StepOutput = []
        for mailbox in list(self._pending):
            if self._last_flush[mailbox] <= oldest:
                self._last_flush[mailbox] = now
                due.append((mailbox, self._pending.pop(mailbox)))
        return due

    def _forget(self, mailbox: Mailbox) -> None:
        self._last_flush.pop(mailbox, None)
        self._pending.pop(mailbox, None)
