"""The agent of a host: hears requests in its exclusive queue, publishes the host's state."""

import asyncio
import random
import re
import socket
import time
from collections.abc import Awaitable, Callable
from typing import Any

from broker.encoding import decode, encode
from broker.errors import BrokerError, DecodeError, NameTaken, QueueLocked
from broker.host_messages import STATE_SECONDS, AnyHostRequest, HostState
from broker.session import Delivery, Session
from broker.shared_objects import declare_shared
from cli.host import machine
from cli.host.nodes import HostNodes
from topology import names

PREFETCH = 100
AT_MOST_EVERY = 0.2  # seconds between two states
DEVICES_EVERY = 10.0  # seconds between two looks at the GPUs
RECONNECT_SECONDS = (0.2, 5.0)  # first and longest pause, jittered
_NAME_LETTERS = 63

Connect = Callable[[], Awaitable[Session]]


def default_name() -> str:
    """This machine's name as a host may be called."""
    plain = re.sub(r"[^a-z0-9_-]", "-", socket.gethostname().lower()).strip("-_")
    return plain[:_NAME_LETTERS] or "host"


class HostAgent:
    """One host. `nodes`: set before `run`; whoever makes them gives them `touch`."""

    def __init__(
        self, name: str, engine: str, connect: Connect, say: Callable[[str], None]
    ) -> None:
        self.name = names.check_node_name(name)
        self._engine = engine
        self._connect = connect
        self._say = say
        self._changed = asyncio.Event()
        self._devices_at = float("-inf")

    def touch(self) -> None:
        """Something has happened: the state is published soon."""
        self._changed.set()

    async def run(self, nodes: HostNodes, *, patient: bool) -> None:
        """Serves for ever, on one session after the other.

        Raises NameTaken if the host's name is taken at the start, unless it is `patient`.
        """
        pause, longest = RECONNECT_SECONDS
        served = patient
        complaint = ""
        while True:
            try:
                session = await self._connect()
                try:
                    await self._register(session, nodes)
                    served, pause, complaint = True, RECONNECT_SECONDS[0], ""
                    await self._serve(session, nodes)
                finally:
                    await session.close()
            except BrokerError as error:
                if isinstance(error, NameTaken) and not served:
                    raise
                if str(error) != complaint:
                    complaint = str(error)
                    self._say(f"the agent of {self.name} is not connected: {complaint}")
            await asyncio.sleep(pause * random.uniform(0.5, 1.0))
            pause = min(longest, pause * 2)

    async def _register(self, session: Session, nodes: HostNodes) -> None:
        """Takes the host's name. Raises NameTaken."""
        await declare_shared(session)
        queue = names.agent(self.name)
        try:
            await session.declare_queue(queue, exclusive=True)
        except QueueLocked as error:
            raise NameTaken(f"another agent is called {self.name}: say --name") from error

        def on_request(delivery: Delivery) -> None:
            delivery.ack()
            try:
                request: AnyHostRequest = decode(delivery.body, AnyHostRequest)
            except DecodeError as error:
                self._say(f"a request to the agent was ignored: {error}")
                return
            nodes.obey(request)

        await session.consume(queue, on_request, prefetch=PREFETCH)

    async def _serve(self, session: Session, nodes: HostNodes) -> None:
        """Publishes until the session is lost, and once more at the end."""
        publishing = asyncio.create_task(self._publish_repeatedly(session, nodes))
        try:
            ends: list[asyncio.Future[Any]] = [publishing, session.closed]
            await asyncio.wait(ends, return_when=asyncio.FIRST_COMPLETED)
            if publishing.done():
                publishing.result()
        except asyncio.CancelledError:
            await self._publish(session, nodes, leaving=True)
            raise
        finally:
            publishing.cancel()
            await asyncio.gather(publishing, return_exceptions=True)

    async def _publish_repeatedly(self, session: Session, nodes: HostNodes) -> None:
        while True:
            now = time.monotonic()
            if now - self._devices_at >= DEVICES_EVERY:
                self._devices_at = now
                nodes.devices = await machine.devices()
            self._changed.clear()
            await self._publish(session, nodes, leaving=False)
            await asyncio.sleep(AT_MOST_EVERY)
            try:
                async with asyncio.timeout(STATE_SECONDS - AT_MOST_EVERY):
                    await self._changed.wait()
            except TimeoutError:
                continue

    async def _publish(self, session: Session, nodes: HostNodes, *, leaving: bool) -> None:
        state = encode(self._state(nodes, leaving))
        sent = session.publish(names.EVENTS_EXCHANGE, names.agent_key(self.name), state)
        if leaving:
            await asyncio.wait([sent], timeout=1.0)

    def _state(self, nodes: HostNodes, leaving: bool) -> HostState:
        total, free = machine.memory()
        return HostState(
            name=self.name,
            host=socket.gethostname(),
            sent=time.time(),
            cpus=machine.cpus(),
            memory=total,
            memory_free=free,
            engine=self._engine,
            max_nodes=nodes.allowed.max_nodes,
            devices=nodes.devices,
            models=nodes.models(),
            nodes=nodes.nodes(),
            results=tuple(nodes.results),
            drills=nodes.drills,
            leaving=leaving,
        )
