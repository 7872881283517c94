"""Accepts states of registered nodes alone.

Anybody who may publish on the events exchange can invent a node, and the queue that it claims to
have would count against every request.
"""

import asyncio
import time
from collections.abc import Callable

import structlog

from broker.errors import BrokerError
from broker.node_state import NodeState
from broker.session import Session
from topology import names

KNOWN_SECONDS = 15.0  # how long an answer of the broker is trusted
RETRY_SECONDS = 1.0  # pause after the broker did not answer
MAX_NAMES = 10_000  # remembered, and waiting to be checked

log = structlog.get_logger()


class Registration:
    """Passes on states (`accept`) whose node has a queue at the broker."""

    def __init__(self, accept: Callable[[NodeState], None]) -> None:
        self._accept = accept
        self._checked: dict[str, tuple[bool, float]] = {}  # name -> registered?, when checked
        self._unchecked: dict[str, NodeState] = {}  # the latest state of each name to check
        self._wake = asyncio.Event()

    def offer(self, state: NodeState) -> None:
        """Passes the state on: at once if its node is known, else once the broker confirms it."""
        if state.status == "stopped":  # its queue is gone already
            self._accept(state)
            return
        registered, checked = self._checked.get(state.name, (False, -KNOWN_SECONDS))
        if time.monotonic() - checked >= KNOWN_SECONDS:
            if len(self._unchecked) < MAX_NAMES:
                self._unchecked[state.name] = state
                self._wake.set()
        elif registered:
            self._accept(state)

    async def check(self, session: Session) -> None:
        """Asks the broker about unknown nodes, until it is cancelled."""
        self._checked.clear()
        while True:
            await self._wake.wait()
            try:
                await self._check_all(session)
            except BrokerError as error:
                log.info("registered nodes are checked later", reason=str(error))
                await asyncio.sleep(RETRY_SECONDS)

    async def _check_all(self, session: Session) -> None:
        while self._unchecked:
            name = next(iter(self._unchecked))
            registered = await session.depth(names.node(name)) is not None
            self._remember(name, registered)
            state = self._unchecked.pop(name)
            if registered:
                self._accept(state)
        self._wake.clear()

    def _remember(self, name: str, registered: bool) -> None:
        if not registered and name not in self._checked:
            log.warning("state of a node that is not registered ignored", node=name)
        if len(self._checked) >= MAX_NAMES:
            self._checked.clear()
        self._checked[name] = registered, time.monotonic()
