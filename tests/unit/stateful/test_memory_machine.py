"""The in-memory queue under random deliveries: nothing lost or doubled, order kept."""

import asyncio

from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from broker.errors import ConnectionLost
from broker.memory import MemoryBroker, MemorySession
from broker.session import Delivery
from tests.unit.stateful.clock import JumpingLoop
from tests.unit.stateful.hunt import histories

QUEUE = "q"
PREFETCH = 3

pick = st.integers(0, 100)


class MemoryMachine(RuleBasedStateMachine):
    """Consumers come and go; messages are numbers."""

    def __init__(self) -> None:
        super().__init__()
        self.runner = asyncio.Runner(loop_factory=JumpingLoop)
        self.published = 0
        self.done: set[int] = set()
        self.seen: set[int] = set()  # delivered at least once
        self.mistaken = False  # a message was called redelivered, or was not, against the truth
        self.taken: dict[MemorySession, list[Delivery]] = {}

    @initialize()
    def open(self) -> None:
        self.runner.run(self._open())

    async def _open(self) -> None:
        self.broker = MemoryBroker()
        self.session = self.broker.session()
        await self.session.declare_queue(QUEUE)

    @rule()
    def publish(self) -> None:
        self.runner.run(self._publish())

    async def _publish(self) -> None:
        assert await self.session.publish("", QUEUE, b"%d" % self.published)
        self.published += 1
        await asyncio.sleep(0)

    @precondition(lambda self: len(self.taken) < 3)
    @rule()
    def consume(self) -> None:
        self.runner.run(self._consume())

    async def _consume(self) -> None:
        session = self.broker.session()
        mine = self.taken[session] = []

        def take(delivery: Delivery) -> None:
            number = int(delivery.body)
            self.mistaken |= delivery.redelivered != (number in self.seen)
            self.seen.add(number)
            mine.append(delivery)

        await session.consume(QUEUE, take, prefetch=PREFETCH)
        await asyncio.sleep(0)

    @precondition(lambda self: any(self.taken.values()))
    @rule(pick=pick, ack=st.booleans())
    def settle(self, pick: int, ack: bool) -> None:
        self.runner.run(self._settle(pick, ack))

    async def _settle(self, pick: int, ack: bool) -> None:
        open_ = [(mine, delivery) for mine in self.taken.values() for delivery in mine]
        mine, delivery = open_[pick % len(open_)]
        mine.remove(delivery)
        if ack:
            self.done.add(int(delivery.body))
            delivery.ack()
        else:
            delivery.requeue()
        await self._turn()

    @precondition(lambda self: self.taken)
    @rule(pick=pick)
    def lose(self, pick: int) -> None:
        self.runner.run(self._lose(list(self.taken)[pick % len(self.taken)]))

    async def _lose(self, session: MemorySession) -> None:
        session.lose(ConnectionLost("cut"))
        for delivery in self.taken.pop(session):
            delivery.ack()  # too late: it changes nothing
        await self._turn()

    async def _turn(self) -> None:
        for _ in range(3):
            await asyncio.sleep(0)

    @invariant()
    def everything_is_somewhere_once(self) -> None:
        if not hasattr(self, "broker"):
            return
        assert not self.mistaken
        ready = [int(message.body) for message in self.broker.queues[QUEUE].ready]
        held = [int(delivery.body) for mine in self.taken.values() for delivery in mine]
        assert sorted([*ready, *held, *self.done]) == list(range(self.published))
        assert ready == sorted(ready)
        assert all(len(mine) <= PREFETCH for mine in self.taken.values())
        assert not ready or all(len(mine) == PREFETCH for mine in self.taken.values())

    def teardown(self) -> None:
        self.runner.close()


MemoryMachine.TestCase.settings = histories(50, steps=40)
TestMemoryMachine = MemoryMachine.TestCase
