"""A tree of puppets: real objects in the broker and states as nodes publish them, but no jobs.

`python -m tests.puppets AMQP_URL MANAGEMENT_URL COUNT FANOUT` plays until its standard input ends.
Hundreds of them cost less than one node's process.
"""

import asyncio
import os
import random
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager

from broker.amqp import AmqpSession
from broker.encoding import decode, encode
from broker.management import ManagementApi
from broker.node_state import NodeState, NodeStatus
from broker.session import Delivery
from broker.wire import AnyControl, Drain, Resume
from cli.home import REPOSITORY
from cli.rabbitmq import Broker
from topology import names

MODEL = "puppets"
ROOT = "farm"
SLOTS = 2
ROUND_SECONDS = 1.0
READY = "ready"


def puppet_names(count: int) -> list[str]:
    """The root and the nodes below it, `count` in all."""
    return [ROOT, *(f"w{number}" for number in range(1, count))]


class Puppets:
    """The tree, as its states say it is."""

    def __init__(self, session: AmqpSession, count: int, fanout: int) -> None:
        self._session = session
        self._names = puppet_names(count)
        self._parents = {
            name: self._names[(index - 1) // fanout]
            for index, name in enumerate(self._names)
            if index > 0
        }
        self._drained: set[str] = set()
        self._received = dict.fromkeys(self._names, 0)
        self._tokens = dict.fromkeys(self._names, 0)
        self._started = time.time()
        self._random = random.Random(7)

    async def register(self) -> None:
        for name in self._names:
            own = names.node(name)
            await self._session.declare_exchange(own, "direct")
            await self._session.declare_queue(own)
            await self._session.declare_queue(names.inbox(name), exclusive=True)
            await self._session.consume(names.inbox(name), self._listener(name), prefetch=10)
            if name == ROOT:
                await self._session.bind(own, names.JOBS_EXCHANGE, MODEL)
            else:
                await self._session.bind(own, names.node(self._parents[name]), name)

    def _listener(self, name: str):  # type: ignore[no-untyped-def]
        def on_control(delivery: Delivery) -> None:
            delivery.ack()
            message = decode(delivery.body, AnyControl)
            if isinstance(message, Drain):
                self._drained.add(name)
            elif isinstance(message, Resume):
                self._drained.discard(name)
            self._publish(name)

        return on_control

    async def play(self) -> None:
        """Publishes every state once in ROUND_SECONDS. Never ends."""
        while True:
            for name in self._names:
                self._publish(name)
            await asyncio.sleep(ROUND_SECONDS)

    def leave(self) -> None:
        for name in self._names:
            self._publish(name, "stopped")

    def _publish(self, name: str, status: NodeStatus | None = None) -> None:
        running = self._random.choice([0, 1, SLOTS])
        if name == ROOT or name in self._drained:
            running = 0
        self._received[name] += running
        self._tokens[name] += 10 * running
        if status is None:
            status = "busy" if running == SLOTS else "idle"
            if name in self._drained:
                status = "drained"
        state = NodeState(
            name=name,
            parent=self._parents.get(name),
            children=tuple(child for child, parent in self._parents.items() if parent == name),
            model=MODEL,
            engine="none" if name == ROOT else "echo",
            device="" if name == ROOT else "cpu",
            policy="hold-high",
            status=status,
            slots=0 if name == ROOT else SLOTS,
            running=running,
            held=0,
            received=self._received[name],
            finished=self._received[name] - running,
            tokens=self._tokens[name],
            host=socket.gethostname(),
            pid=os.getpid(),
            started=self._started,
            sent=time.time(),
        )
        self._session.publish(names.EVENTS_EXCHANGE, names.state_key(name), encode(state))


async def perform(url: str, management_url: str, count: int, fanout: int) -> None:
    """Plays, and removes its objects at the end."""
    session = await AmqpSession.open(url, "puppets")
    puppets = Puppets(session, count, fanout)
    await puppets.register()
    playing = asyncio.create_task(puppets.play())
    print(READY, flush=True)
    await asyncio.to_thread(sys.stdin.read)
    playing.cancel()
    puppets.leave()
    await session.close()
    api = ManagementApi(management_url)
    for name in puppet_names(count):
        for kind in ("queues", "exchanges"):
            await api.delete(f"{kind}/%2F/{names.node(name)}")


@contextmanager
def playing(broker: Broker, count: int, fanout: int) -> Iterator[None]:
    """The puppets, in a process of their own."""
    addresses = [broker.amqp["node"], broker.management["admin"]]
    process = subprocess.Popen(
        [sys.executable, "-m", "tests.puppets", *addresses, str(count), str(fanout)],
        cwd=REPOSITORY,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    assert process.stdin and process.stdout
    try:
        assert process.stdout.readline().strip() == READY
        yield
    finally:
        process.stdin.close()
        process.wait(60)
        process.stdout.close()


if __name__ == "__main__":
    asyncio.run(perform(sys.argv[1], sys.argv[2], int(sys.argv[3]), int(sys.argv[4])))
