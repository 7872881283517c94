"""Names of exclusive queues whose connection is gone become free, and no others."""

from pathlib import Path

import pytest

from broker.amqp import AmqpSession
from broker.errors import BrokerError, QueueLocked
from cli import lost_queues
from tests.faults.disk import fill, small_disk
from tests.realbroker import Server, private_server
from tests.session_contract import fresh

END_SECONDS = 5.0  # which a broker takes that writes a crash dump


async def test_a_name_that_a_full_disk_left_taken_is_free_again(tmp_path: Path) -> None:
    with small_disk(tmp_path / "disk") as folder, private_server(folder / "home") as server:
        url, queue = server.address.amqp["node"], fresh("inbox")
        ballast = fill(folder)
        await declare_and_leave(url, queue)
        ballast.unlink()
        if server.has_ended(END_SECONDS):  # RabbitMQ 3 cannot go on, and its names go with it
            server.launch()
            server.wait_accepting()
        await remove_lost(server)
        # the first declaration after that may still fail: a node tries again, too
        await declare_and_leave(url, queue)
        await declare_and_leave(url, queue, must=True)


async def test_a_name_whose_connection_lives_stays_taken(tmp_path: Path) -> None:
    with private_server(tmp_path) as server:
        url, queue = server.address.amqp["node"], fresh("inbox")
        owner = await AmqpSession.open(url, "test")
        await owner.declare_queue(queue, exclusive=True)
        await remove_lost(server)
        with pytest.raises(QueueLocked):
            await declare_and_leave(url, queue, must=True)
        await owner.close()


async def remove_lost(server: Server) -> None:
    await server.private.evaluate(lost_queues.REMOVE, 10.0)


async def declare_and_leave(url: str, queue: str, *, must: bool = False) -> None:
    try:
        session = await AmqpSession.open(url, "test")
        try:
            await session.declare_queue(queue, exclusive=True)
        finally:
            await session.close()
    except BrokerError:
        if must:
            raise
