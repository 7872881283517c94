"""Few acknowledgements for many deliveries, and none for a delivery still open."""

import asyncio
from dataclasses import dataclass, field

from hypothesis import given
from hypothesis import strategies as st

from broker.channels import Acknowledger


@dataclass
class Broker:
    """A channel as the broker keeps it: acknowledging an unknown delivery would close it."""

    unacked: list[int] = field(default_factory=list)
    acked: list[int] = field(default_factory=list)
    requeued: list[int] = field(default_factory=list)
    frames: int = 0
    is_open: bool = True

    def basic_ack(self, tag: int, multiple: bool = False) -> None:
        assert tag in self.unacked
        taken = [each for each in self.unacked if each == tag or (multiple and each < tag)]
        self.unacked = [each for each in self.unacked if each not in taken]
        self.acked += taken
        self.frames += 1

    def basic_nack(self, tag: int, requeue: bool) -> None:
        assert requeue
        self.unacked.remove(tag)
        self.requeued.append(tag)


def opened(deliveries: int) -> tuple[Broker, Acknowledger]:
    broker = Broker(list(range(1, deliveries + 1)))
    acknowledger = Acknowledger(broker)  # type: ignore[arg-type]
    for tag in broker.unacked:
        acknowledger.delivered(tag)
    return broker, acknowledger


@given(
    st.permutations(range(1, 9)),
    st.lists(st.booleans(), min_size=8, max_size=8),
    st.sets(st.integers(0, 7)),
)
def test_each_delivery_has_its_own_fate_in_whatever_order_and_turn(
    order: list[int], done: list[bool], turns: set[int]
) -> None:
    async def settle() -> None:
        broker, acknowledger = opened(8)
        for place, tag in enumerate(order):
            acknowledger.settle(tag, done[tag - 1])
            if place in turns:
                await asyncio.sleep(0)
                assert set(broker.acked) == {each for each in order[: place + 1] if done[each - 1]}
        await asyncio.sleep(0)
        assert sorted(broker.acked) == [tag for tag in range(1, 9) if done[tag - 1]]
        assert sorted(broker.requeued) == [tag for tag in range(1, 9) if not done[tag - 1]]
        assert not broker.unacked

    asyncio.run(settle())


async def test_what_is_settled_in_one_turn_takes_one_frame() -> None:
    broker, acknowledger = opened(100)
    for tag in range(1, 100):
        acknowledger.settle(tag, True)
    await asyncio.sleep(0)
    assert broker.frames == 1
    assert broker.unacked == [100]


async def test_after_the_channel_closed_nothing_is_sent() -> None:
    broker, acknowledger = opened(2)
    acknowledger.settle(1, True)
    broker.is_open = False
    acknowledger.settle(2, False)
    await asyncio.sleep(0)
    assert broker.unacked == [1, 2]
