"""What every broker session promises; run on the in-memory twin (unit) and on RabbitMQ (broker)."""

import asyncio
import uuid
from collections.abc import Awaitable, Callable

import pytest

from broker.errors import NotFound, QueueLocked, Unsendable
from broker.limits import MAX_BODY_BYTES
from broker.session import Delivery, Session

Open = Callable[[], Awaitable[Session]]
SECONDS = 5.0
BAD_NAMES = ["模" * 90, "x" * 256, "\ud800"]
UNSENDABLE: list[tuple[tuple[str, str], bytes, dict[str, object] | None]] = [
    *((("", name), b"x", None) for name in BAD_NAMES),
    *(((name, "key"), b"x", None) for name in BAD_NAMES),
    (("", "key"), bytes(MAX_BODY_BYTES + 1), None),
    (("", "key"), b"x", {"header": "x" * 200_000}),
    (("", "key"), b"x", {"header": ["x" * 1000] * 200}),
    (("", "key"), b"x", {"x" * 256: "value"}),
    (("", "key"), b"x", {"header": "\ud800"}),
    (("", "key"), b"x", {"header": 2**63}),
    (("", "key"), b"x", {"header": 1.5}),
    (("", "key"), b"x", {"header": object()}),
]


def fresh(kind: str = "node") -> str:
    """A name nobody else uses, of a kind that the node's rights cover."""
    return f"canopy.{kind}.{uuid.uuid4().hex[:8]}"


class Inbox:
    """Collects deliveries."""

    def __init__(self) -> None:
        self.taken: asyncio.Queue[Delivery] = asyncio.Queue()

    def __call__(self, delivery: Delivery) -> None:
        self.taken.put_nowait(delivery)

    async def next(self) -> Delivery:
        async with asyncio.timeout(SECONDS):
            return await self.taken.get()


class SessionContract:
    """Subclasses provide the fixture `connect`."""

    async def test_messages_arrive_in_order_and_are_confirmed(self, connect: Open) -> None:
        session, queue, inbox = await connect(), fresh(), Inbox()
        await session.declare_queue(queue)
        sent = [session.publish("", queue, b"%d" % number, persistent=True) for number in range(50)]
        assert all(await asyncio.gather(*sent))
        tag = await session.consume(queue, inbox, prefetch=100)
        taken = [await inbox.next() for _ in range(50)]
        assert [int(each.body) for each in taken] == list(range(50))
        for each in taken:
            each.ack()
        await session.cancel(tag)
        assert await session.delete_queue(queue)

    async def test_a_message_nobody_takes_comes_back(self, connect: Open) -> None:
        session, queue = await connect(), fresh()
        await session.declare_queue(queue)
        outcomes = [session.publish("", name, b"x") for name in (queue, fresh(), queue)]
        assert await asyncio.gather(*outcomes) == [True, False, True]

    async def test_a_message_that_cannot_be_sent_fails_alone(self, connect: Open) -> None:
        session, queue = await connect(), fresh()
        await session.declare_queue(queue)
        before = session.publish("", queue, b"x")
        outcomes = [
            session.publish(*address, body, headers=headers)
            for address, body, headers in UNSENDABLE
        ]
        after = [session.publish("", name, b"x") for name in (queue, fresh(), queue)]
        for outcome in outcomes:
            with pytest.raises(Unsendable):
                await outcome
        async with asyncio.timeout(SECONDS):
            assert await before
            assert await asyncio.gather(*after) == [True, False, True]
        assert await session.depth(queue) == 3

    async def test_a_name_that_cannot_be_sent_costs_one_call(self, connect: Open) -> None:
        session, queue = await connect(), fresh()
        for name in BAD_NAMES:
            for call in (session.exists(name), session.depth(name), session.declare_queue(name)):
                with pytest.raises(Unsendable):
                    await call
        await session.declare_queue(queue)
        with pytest.raises(Unsendable):
            await session.bind(queue, "amq.direct", BAD_NAMES[0])
        assert await session.exists(queue)

    async def test_an_exclusive_queue_has_one_owner_and_dies_with_it(self, connect: Open) -> None:
        first, second, name = await connect(), await connect(), fresh("inbox")
        await first.declare_queue(name, exclusive=True)
        with pytest.raises(QueueLocked):
            await second.declare_queue(name, exclusive=True)
        assert await second.exists(name)
        assert await second.depth(name) is None
        watch, inbox = fresh("inbox"), Inbox()
        await second.declare_queue(watch, exclusive=True)
        await second.bind(watch, "amq.rabbitmq.event", "queue.deleted")
        await second.consume(watch, inbox, prefetch=10)
        await first.close()
        while (await inbox.next()).headers.get("name") != name:
            pass
        await second.declare_queue(name, exclusive=True)

    async def test_refusals_do_not_cost_the_session(self, connect: Open) -> None:
        session, queue = await connect(), fresh()
        with pytest.raises(NotFound):
            await session.bind(queue, fresh(), "k")
        with pytest.raises(NotFound):
            await session.consume(queue, Inbox(), prefetch=1)
        assert not await session.exists(queue)
        assert await session.depth(queue) is None
        await session.declare_queue(queue)
        assert await session.depth(queue) == 0
        assert not session.closed.done()

    async def test_routing_follows_the_bindings(self, connect: Open) -> None:
        session = await connect()
        queue, direct, inbox = fresh(), fresh(), Inbox()
        await session.declare_queue(queue)
        await session.declare_exchange(direct, "direct")
        await session.bind(queue, direct, "a")
        await session.consume(queue, inbox, prefetch=10)
        assert await session.publish(direct, "a", b"1")
        assert not await session.publish(direct, "b", b"2")
        await session.unbind(queue, direct, "a")
        assert not await session.publish(direct, "a", b"3")
        assert (await inbox.next()).body == b"1"
        assert inbox.taken.empty()

    async def test_prefetch_bounds_what_is_unsettled(self, connect: Open) -> None:
        session, queue, inbox = await connect(), fresh(), Inbox()
        await session.declare_queue(queue)
        await asyncio.gather(*(session.publish("", queue, b"%d" % number) for number in range(5)))
        await session.consume(queue, inbox, prefetch=2)
        first, _second = await inbox.next(), await inbox.next()
        assert await session.depth(queue) == 3
        assert inbox.taken.empty()
        first.ack()
        assert (await inbox.next()).body == b"2"

    async def test_what_a_consumer_was_sent_has_arrived_when_it_is_cancelled(
        self, connect: Open
    ) -> None:
        session, queue, inbox = await connect(), fresh(), Inbox()
        await session.declare_queue(queue)
        await asyncio.gather(*(session.publish("", queue, b"x") for _ in range(5)))
        await session.cancel(await session.consume(queue, inbox, prefetch=3))
        assert inbox.taken.qsize() + (await session.depth(queue) or 0) == 5

    async def test_unsettled_messages_are_delivered_again(self, connect: Open) -> None:
        first, second, queue = await connect(), await connect(), fresh()
        await first.declare_queue(queue)
        lost, redelivered = Inbox(), Inbox()
        await first.consume(queue, lost, prefetch=10)
        await asyncio.gather(
            *(second.publish("", queue, b"%d" % number, persistent=True) for number in range(3))
        )
        (await lost.next()).ack()
        assert not (await lost.next()).redelivered
        await first.close()
        await second.consume(queue, redelivered, prefetch=10)
        again = [await redelivered.next(), await redelivered.next()]
        assert [each.body for each in again] == [b"1", b"2"]
        assert again[0].redelivered

    async def test_a_queue_with_messages_is_not_deleted(self, connect: Open) -> None:
        session, queue, inbox = await connect(), fresh(), Inbox()
        await session.declare_queue(queue)
        await session.publish("", queue, b"x")
        assert not await session.delete_queue(queue)
        tag = await session.consume(queue, inbox, prefetch=1)
        (await inbox.next()).ack()
        await session.cancel(tag)
        assert await session.delete_queue(queue)
        assert await session.delete_queue(queue)  # gone is gone
        assert not session.closed.done()

    async def test_a_queue_that_somebody_consumes_is_not_deleted(self, connect: Open) -> None:
        session, other, queue = await connect(), await connect(), fresh()
        await session.declare_queue(queue)
        tag = await other.consume(queue, Inbox(), prefetch=1)
        assert not await session.delete_queue(queue)
        await other.cancel(tag)
        assert await session.delete_queue(queue)

    async def test_an_exchange_is_deleted_with_its_bindings_or_only_without_any(
        self, connect: Open
    ) -> None:
        session, queue, exchange = await connect(), fresh(), fresh()
        await session.declare_queue(queue)
        for if_unused in (False, True):
            await session.declare_exchange(exchange, "direct")
            await session.bind(queue, exchange, "k")
            assert await session.delete_exchange(exchange, if_unused=if_unused) is not if_unused
        assert await session.publish(exchange, "k", b"x")
        await session.unbind(queue, exchange, "k")
        assert await session.delete_exchange(exchange, if_unused=True)
        assert await session.delete_exchange(exchange, if_unused=True)  # gone is gone

    async def test_a_closed_session_says_so(self, connect: Open) -> None:
        session, queue = await connect(), fresh()
        await session.declare_queue(queue)
        await session.close()
        assert session.closed.done()
        with pytest.raises(type(session.closed.result())):
            await session.publish("", queue, b"x")
