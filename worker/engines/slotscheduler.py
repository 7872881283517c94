"""What each step computes, over slots: who gets one, which pieces of prompts are read, who moves by a token.

On a GPU the host is a step ahead: a step is queued before the tokens of the one before are looked at, so turning
tokens into text and telling readers costs the device nothing. A sequence that turns out to have ended was computed
once more than needed.
"""

from collections import deque
from collections.abc import Callable
from typing import NamedTuple

import structlog

from worker.engines.attention import Piece
from worker.engines.base import EngineError
from worker.engines.failure import model_failed
from worker.engines.loaded import Loaded, OverSlots
from worker.engines.prefixes import Slots, common
from worker.engines.sampling import Choice, Sampler
from worker.engines.scheduling import News
from worker.engines.sequence import Sequence
from worker.engines.slotmodel import PIECES

log = structlog.get_logger(__name__)

_WORTH_WAITING = 64  # tokens that a prompt being read shares with another one: that one waits for them


class _Row:
    """A sequence in its slot."""

    def __init__(self, sequence: Sequence, slot: int, held: int) -> None:
        self.sequence = sequence
        self.slot = slot
        self.most = sequence.left  # tokens that it may have from here on
        self.read = held  # tokens of its prompt whose keys and values are in the slot
        self.taken: list[int] = []  # the tokens chosen since, as far as the host knows them
        self.asked = 0  # tokens chosen since, known or not

    @property
    def position(self) -> int:
        """Where its newest token is computed."""
        return len(self.sequence.ids) + self.asked - 1

    @property
    def wants(self) -> bool:
        """It may have another token."""
        return not self.sequence.finished and self.asked < self.most


class _Made(NamedTuple):
    rows: list[_Row]
    choice: Choice


class SlotScheduler:
    """Keeps the `Scheduler` protocol, over slots."""

    def __init__(self, loaded: Loaded, model: OverSlots) -> None:
        self._model = model
        self._budget = loaded.prefill_tokens
        self._slots = Slots(model.slots)
        self._sampler = Sampler(model.slots, loaded.vocabulary, model.device)
        self._waiting: deque[Sequence] = deque()
        self._reading: list[_Row] = []
        self._running: list[_Row] = []
        self._made: deque[_Made] = deque()  # not looked at yet
        self._news: News = []

    @property
    def busy(self) -> bool:
        """There is something to compute or to look at."""
        return bool(self._waiting or self._reading or self._running or self._made)

    @property
    def reuse(self) -> tuple[int, int]:
        """Prompt tokens since the start, and how many of them were held already."""
        return self._slots.asked, self._slots.reused

    def add(self, sequence: Sequence) -> None:
        """Takes a prepared sequence in."""
        self._waiting.append(sequence)

    def everyone(self) -> list[Sequence]:
        """All that have not ended."""
        return [*self._waiting, *(row.sequence for row in (*self._reading, *self._running))]

    def step(self) -> News:
        """A bounded piece of the newcomers' prompts, then a token for everyone who runs."""
        self._leave()
        self._seat()
        before = len(self._made)
        self._attempt(self._read, self._reading)
        self._attempt(self._decode, self._running)
        fresh = len(self._made) - before
        unread = fresh if self._model.device_ahead else 0
        while len(self._made) > unread:
            self._look()
        news, self._news = self._news, []
        return news

    def _leave(self) -> None:
        """Rows that have ended give their slots back."""
        for rows in (self._reading, self._running):
            for row in [row for row in rows if row.sequence.finished]:
                rows.remove(row)
                if row.read >= len(row.sequence.ids):  # the newest token's keys may not have been computed
                    self._slots.read(row.slot, row.taken[:-1])
                self._slots.leave(row.slot)

    def _seat(self) -> None:
        """Waiting sequences take free slots, first come first seated, but for those that gain by waiting."""
        for sequence in list(self._waiting):
            if sequence.finished:
                self._waiting.remove(sequence)
            elif self._slots.free and not self._gains_by_waiting(sequence):
                self._waiting.remove(sequence)
                seat = self._slots.take(sequence.ids, reuse=not sequence.sampling.reproducible)
                row = _Row(sequence, seat.slot, seat.held)
                if seat.source is not None:
                    self._model.copy(seat.source, seat.slot, seat.held)
                self._sampler.assign(seat.slot, sequence.sampling, sequence.prompt, sequence.answer)
                self._reading.append(row)

    def _gains_by_waiting(self, sequence: Sequence) -> bool:
        """A prompt that begins like this one is being read just now: its keys and values can be had for a copy soon."""
        if not self._reading or sequence.sampling.reproducible:
            return False
        soon = max(common(row.sequence.ids, sequence.ids) for row in self._reading)
        return soon >= _WORTH_WAITING and soon >= self._slots.shared(sequence.ids) + _WORTH_WAITING

    def _read(self) -> None:
        """The next tokens of the prompts that are being read, as many as a step may hold."""
        budget, rows, pieces = self._budget, [], []
        for row in self._reading[:PIECES]:
            count = min(budget, len(row.sequence.ids) - row.read)
            if count > 0:
                rows.append(row)
                pieces.append(Piece(row.slot, row.read, count))
                budget -= count
        if not rows:
            return
        parts = [
            row.sequence.ids[piece.start : piece.start + piece.length] for row, piece in zip(rows, pieces, strict=True)
        ]
        ends = [row.read + piece.length == len(row.sequence.ids) for row, piece in zip(rows, pieces, strict=True)]
        logits = self._model.prefill(pieces, parts, ends, fixed=_fixed(rows))
        for row, part in zip(rows, parts, strict=True):
            row.read += len(part)
            self._slots.read(row.slot, part)
        if done := [row for row, end in zip(rows, ends, strict=True) if end]:
            self._choose(done, self._sampler.choose(logits, [row.slot for row in done]))
            self._running += done
            self._reading = [row for row in self._reading if row not in done]

    def _decode(self) -> None:
        """One token for each row that may have one."""
        rows = [row for row in self._running if row.wants]
        if rows:
            slots = [row.slot for row in rows]
            logits = self._model.decode(slots, [row.position for row in rows], fixed=_fixed(rows))
            self._choose(rows, self._sampler.choose(logits, slots))

    def _choose(self, rows: list[_Row], choice: Choice) -> None:
        self._model.feed(choice.tokens)
        for row in rows:
            row.asked += 1
        self._made.append(_Made(rows, choice))

    def _look(self) -> None:
        """The tokens of the oldest step not looked at yet; waits for the device."""
        made = self._made.popleft()
        try:
            picked = made.choice.read()
            self._model.check()
        except Exception as error:  # whatever the device reports now, perhaps of an earlier step
            log.exception("step failed", jobs=len(made.rows))
            self._fail(made.rows, model_failed(error))
            self._slots.forget()
            return
        for row, pick in zip(made.rows, picked, strict=True):
            if row.sequence.finished:
                continue
            row.taken.append(pick.token)
            if chunk := row.sequence.take(pick):
                self._news.append((row.sequence.mailbox, chunk))

    def _attempt(self, work: Callable[[], None], rows: list[_Row]) -> None:
        """A failure ends the rows that the work was for, and nothing else."""
        concerned = list(rows)
        try:
            work()
        except Exception as error:  # whatever a model raises; its jobs go on elsewhere
            log.exception("step failed", jobs=len(concerned))
            self._fail(concerned, model_failed(error))

    def _fail(self, rows: list[_Row], error: EngineError) -> None:
        for row in rows:
            if not row.sequence.finished:
                row.sequence.finished = True
                self._news.append((row.sequence.mailbox, error))


def _fixed(rows: list[_Row]) -> bool:
    """Somebody among them named a seed."""
    return any(row.sequence.sampling.reproducible for row in rows)
