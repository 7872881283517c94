"""What lies in `canopy.dead`, read as a person would with the admin's rights."""

import asyncio
from collections.abc import Callable

from broker import dead_letters
from broker.amqp import AmqpSession
from cli.rabbitmq import Broker

SECONDS = 10.0


async def letters(
    broker: Broker, matches: Callable[[dead_letters.Letter], bool], count: int
) -> list[dead_letters.Letter]:
    """The matching dead letters; waits until there are `count`. All stay in the queue."""
    matching: list[dead_letters.Letter] = []
    try:
        async with asyncio.timeout(SECONDS):
            while True:
                matching = [letter for letter in await _all(broker) if matches(letter)]
                if len(matching) >= count:
                    return matching
    except TimeoutError:
        raise AssertionError(f"{len(matching)} of {count} dead letters: {matching}") from None


async def _all(broker: Broker) -> list[dead_letters.Letter]:
    session = await AmqpSession.open(broker.amqp["admin"], "test")
    try:
        return await dead_letters.read_letters(session)
    finally:
        await session.close()
