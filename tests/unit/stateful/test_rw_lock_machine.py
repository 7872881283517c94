"""The lock under random orders: exclusive means alone, and nobody waits for ever."""

import asyncio

from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from tests.unit.stateful.clock import JumpingLoop
from tests.unit.stateful.hunt import histories
from worker.rw_lock import ReadersWriterLock

TURNS = 20  # enough for everybody who can go on

pick = st.integers(0, 100)


class Visitor:
    """Wants to compute, does so until told to end."""

    def __init__(self, lock: ReadersWriterLock, *, alone: bool) -> None:
        self.alone = alone
        self.inside = False
        self.end = asyncio.Event()
        self.task = asyncio.create_task(self._visit(lock))

    async def _visit(self, lock: ReadersWriterLock) -> None:
        async with lock.exclusive() if self.alone else lock.shared():
            self.inside = True
            try:
                await self.end.wait()
            finally:
                self.inside = False


class RwLockMachine(RuleBasedStateMachine):
    """Holders come, end and are cancelled, several of them before anybody gets the lock."""

    def __init__(self) -> None:
        super().__init__()
        self.runner = asyncio.Runner(loop_factory=JumpingLoop)
        self.lock = ReadersWriterLock(self._changed)
        self.closed = False  # as was said last
        self.visitors: list[Visitor] = []

    def _changed(self) -> None:
        self.closed = self.lock.shared_blocked

    def waiting(self) -> list[Visitor]:
        return [each for each in self.visitors if not each.inside]

    @rule(alone=st.booleans())
    def come(self, alone: bool) -> None:
        self.runner.run(self._come(alone))

    async def _come(self, alone: bool) -> None:
        self.visitors.append(Visitor(self.lock, alone=alone))

    @precondition(lambda self: self.visitors)
    @rule(pick=pick)
    def end(self, pick: int) -> None:
        self.visitors[pick % len(self.visitors)].end.set()

    @precondition(lambda self: self.visitors)
    @rule(pick=pick)
    def cancel(self, pick: int) -> None:
        self.visitors[pick % len(self.visitors)].task.cancel()

    @rule(turns=st.sampled_from([1, 2, TURNS]))
    def go_on(self, turns: int) -> None:
        self.runner.run(self._turn(turns))
        if turns == TURNS:
            self.nobody_is_forgotten()

    async def _turn(self, turns: int) -> None:
        for _ in range(turns):
            await asyncio.sleep(0)
        self.visitors = [each for each in self.visitors if not each.task.done()]

    def nobody_is_forgotten(self) -> None:
        """Who waits has a reason to."""
        inside = [each for each in self.visitors if each.inside]
        wishing = [each for each in self.visitors if each.alone]
        for each in self.waiting():
            assert inside if each.alone else wishing, "waits for nothing"
        assert self.lock.shared_blocked == bool(wishing)

    @invariant()
    def alone_is_alone(self) -> None:
        inside = [each for each in self.visitors if each.inside]
        assert len(inside) <= 1 or not any(each.alone for each in inside)
        assert self.closed == self.lock.shared_blocked

    def teardown(self) -> None:
        try:
            self.runner.run(self._end_all())
            assert not self.visitors
            assert not self.lock.shared_blocked
        finally:
            self.runner.close()

    async def _end_all(self) -> None:
        for each in self.visitors:
            each.end.set()
        await self._turn(TURNS * (1 + len(self.visitors)))


RwLockMachine.TestCase.settings = histories(60, steps=40)
TestRwLockMachine = RwLockMachine.TestCase
