"""Believes the states of registered nodes alone. Anybody who may publish on the events exchange can invent a node, and
what it claims to hold would count against every request.
"""

import asyncio
import time
from collections.abc import Callable

import structlog

from broker.session import BrokerError, Session
from broker.wire import NodeState
from topology import names

KNOWN_SECONDS = 15.0  # after which it is looked whether a node is still registered, or now is
RETRY_SECONDS = 1.0  # where the broker does not answer
MOST_NAMES = 10_000  # remembered, and waiting to be looked for

log = structlog.get_logger()


class Registration:
    """Passes on states (`accept`) whose node has a queue at the broker."""

    def __init__(self, accept: Callable[[NodeState], None]) -> None:
        self._accept = accept
        self._looked: dict[
            str, tuple[bool, float]
        ] = {}  # registered or not, and when that was seen
        self._unsure: dict[
            str, NodeState
        ] = {}  # the latest state of each name that is to be looked for
        self._wake = asyncio.Event()

    def offer(self, state: NodeState) -> None:
        """A state has come. It is passed on at once if its node is known, else when the broker was asked."""
        if state.status == "stopped":  # its queue is gone already
            self._accept(state)
            return
        registered, looked = self._looked.get(state.name, (False, -KNOWN_SECONDS))
        if time.monotonic() - looked >= KNOWN_SECONDS:
            if len(self._unsure) < MOST_NAMES:
                self._unsure[state.name] = state
                self._wake.set()
        elif registered:
            self._accept(state)

    async def look(self, session: Session) -> None:
        """Looks for the nodes that are not known, until it is cancelled."""
        self._looked.clear()
        while True:
            await self._wake.wait()
            try:
                await self._look_for_all(session)
            except BrokerError as error:
                log.info("registered nodes are looked for later", reason=str(error))
                await asyncio.sleep(RETRY_SECONDS)

    async def _look_for_all(self, session: Session) -> None:
        while self._unsure:
            name = next(iter(self._unsure))
            registered = await session.depth(names.node(name)) is not None
            self._remember(name, registered)
            state = self._unsure.pop(name)
            if registered:
                self._accept(state)
        self._wake.clear()

    def _remember(self, name: str, registered: bool) -> None:
        if not registered and name not in self._looked:
            log.warning("state of a node that is not registered ignored", node=name)
        if len(self._looked) >= MOST_NAMES:
            self._looked.clear()
        self._looked[name] = registered, time.monotonic()
