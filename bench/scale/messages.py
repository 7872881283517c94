"""How many messages cross the broker, by purpose: counted from RabbitMQ's firehose, which copies every publish.

The firehose costs the broker as much again, so messages are counted apart from processor time.
"""

import contextlib
from collections import Counter
from collections.abc import AsyncIterator

import httpx

from broker.amqp import AmqpSession
from broker.errors import DecodeError
from broker.session import Delivery
from broker.wire import AnyControl as Controls
from broker.wire import Capacity, decode
from cli.rabbitmq import Broker
from topology import names

KINDS = ("job", "capacity", "control", "frames", "state", "other")
_TRACE = "amq.rabbitmq.trace"
_QUEUE = "bench.scale"
_PUBLISHED = "publish."
_PREFETCH = 2000


def kind(exchange: str, key: str, body: bytes) -> str:
    """What a message is for: one of KINDS."""
    if exchange == names.JOBS_EXCHANGE or names.node_of(exchange or key) is not None:
        return "job"
    if exchange == names.EVENTS_EXCHANGE:
        return "state"
    if exchange == names.CONTROL_EXCHANGE:
        return "control"
    if exchange or not key.startswith((names.INBOX_PREFIX, names.REPLY_PREFIX)):
        return "other"
    return "frames" if key.startswith(names.REPLY_PREFIX) else _control(body)


def _control(body: bytes) -> str:
    try:
        return "capacity" if isinstance(decode(body, Controls), Capacity) else "control"
    except DecodeError:
        return "other"


def taken_apart(delivery: Delivery) -> str:
    """The kind of the message of which this is the firehose's copy."""
    keys = delivery.headers.get("routing_keys")
    key = str(keys[0]) if isinstance(keys, list) and keys else ""
    return kind(delivery.routing_key.removeprefix(_PUBLISHED), key, delivery.body)


@contextlib.asynccontextmanager
async def counted(broker: Broker) -> AsyncIterator[Counter[str]]:
    """Published messages by kind since the block began. Raises httpx.HTTPError, BrokerError."""
    count: Counter[str] = Counter()

    def take(delivery: Delivery) -> None:
        delivery.ack()
        count[taken_apart(delivery)] += 1

    session = await AmqpSession.open(broker.amqp["admin"], "bench scale")
    try:
        await session.declare_queue(_QUEUE, exclusive=True)
        await session.bind(_QUEUE, _TRACE, f"{_PUBLISHED}#")
        await session.consume(_QUEUE, take, prefetch=_PREFETCH)
        await _switch(broker, on=True)
        try:
            yield count
        finally:
            await _switch(broker, on=False)
    finally:
        await session.close()


async def _switch(broker: Broker, *, on: bool) -> None:
    async with httpx.AsyncClient(trust_env=False, timeout=10) as http:
        answer = await http.put(
            f"{broker.management['admin']}/api/vhosts/%2F", json={"tracing": on}
        )
        answer.raise_for_status()
