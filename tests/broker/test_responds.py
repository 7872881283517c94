"""A silently cut broker is noticed by a probe, before its heartbeats time out."""

import asyncio

from api.health.probe import Probe
from broker.client import Client
from cli.rabbitmq import Broker
from tests.proxy import Proxy

SECONDS = 20.0


async def test_a_connection_that_is_cut_off_does_not_respond(broker: Broker) -> None:
    async with Proxy.before(broker.amqp["api"]) as proxy, asyncio.timeout(SECONDS):
        client = Client(proxy.through(broker.amqp["api"]))
        await client.start()
        try:
            while not client.connected:
                await client.changed()
            assert await client.responds()
            proxy.freeze()
            assert client.connected
            probe = Probe(lambda: _silence(client), silence="silent", deadline=0.5)
            assert await probe.problem() == "silent"
            assert client.connected  # heartbeats have not been missed yet
        finally:
            proxy.cut()
            await client.stop()


async def _silence(client: Client) -> str | None:
    return None if await client.responds() else "silent"
