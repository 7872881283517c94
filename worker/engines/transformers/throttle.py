"""How often readers are told: each new token at once while few are read, several at a time while
many are.

Passing one token on costs some 50 us over the node, the broker and the API, whatever its length; an
engine that makes 20,000 a second would spend two cores on it. So a node tells at most so many
pieces a second, and the more it computes at once the longer each stream's pieces are. A first
token, an end and an error are never kept back.
"""

from collections.abc import Callable, Collection

import structlog

from worker.engines.base import Chunk, EngineError
from worker.engines.transformers.base import News
from worker.engines.transformers.errors import row_failed
from worker.engines.transformers.mailbox import Mailbox, joined

PIECES_A_SECOND = 5000

log = structlog.get_logger(__name__)


class Telling:
    """Between the computing thread and `tell`; used by that thread alone. `clock` gives seconds."""

    def __init__(self, tell: Callable[[News], None], clock: Callable[[], float]) -> None:
        self._tell = tell
        self._clock = clock
        # streams that had a token, and when they were told last
        self._told: dict[Mailbox, float] = {}
        self._kept: dict[Mailbox, Chunk] = {}

    def pass_on(self, news: News) -> None:
        """What a step made. Called after each step, also one that made nothing new to tell."""
        now = self._clock()
        due: News = []
        for mailbox, item in news:
            try:
                due += self._due(mailbox, item, now)
            except Exception as error:
                # its reader would miss a part of the answer, so that answer ends here
                log.exception("a chunk could not be passed on")
                self._forget(mailbox)
                due.append((mailbox, row_failed(error)))
        due += self._due_again(now)
        if due:
            self._tell(due)

    def retain(self, streams: Collection[Mailbox]) -> None:
        """All other streams were ended from outside. Looked at only if there are more than these."""
        if len(self._told) > len(streams):
            for mailbox in self._told.keys() - set(streams):
                self._forget(mailbox)

    def _due(self, mailbox: Mailbox, item: Chunk | EngineError, now: float) -> News:
        """What of a stream's new item, and of what was kept back, is told at once."""
        kept = self._kept.pop(mailbox, None)
        if isinstance(item, EngineError):
            self._forget(mailbox)
            return [(mailbox, item)] if kept is None else [(mailbox, kept), (mailbox, item)]
        chunk = item if kept is None else joined(kept, item)
        if chunk.finish is not None:
            self._forget(mailbox)
            return [(mailbox, chunk)]
        if mailbox in self._told:
            self._kept[mailbox] = chunk
            return []
        self._told[mailbox] = now
        return [(mailbox, chunk)]

    def _due_again(self, now: float) -> News:
        """What was kept back for long enough."""
        since = now - len(self._told) / PIECES_A_SECOND
        due: News = []
        for mailbox in [mailbox for mailbox in self._kept if self._told[mailbox] <= since]:
            self._told[mailbox] = now
            due.append((mailbox, self._kept.pop(mailbox)))
        return due

    def _forget(self, mailbox: Mailbox) -> None:
        self._told.pop(mailbox, None)
        self._kept.pop(mailbox, None)
