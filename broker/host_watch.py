"""One API process's view of all hosts, as their agents publish it, and its requests to them."""

import asyncio
import time
import uuid
from dataclasses import dataclass

import structlog

from broker.encoding import decode, encode
from broker.errors import BrokerError, DecodeError, NoSuchHost, Refusal, Unavailable
from broker.host_messages import (
    SILENT_SECONDS,
    AnyHostRequest,
    HostResult,
    HostState,
)
from broker.session import Delivery, Session
from topology import names

PREFETCH = 1000
MAX_HOSTS = 1_000
ANSWER_SECONDS = 10.0  # for an agent to accept or refuse a request

log = structlog.get_logger()


@dataclass(slots=True)
class _Heard:
    state: HostState
    at: float  # time.monotonic()


def new_number() -> str:
    """The name of one request to an agent."""
    return uuid.uuid4().hex


class HostWatch:
    """Follows the hosts' states, and carries requests to their agents."""

    def __init__(self, process: str) -> None:
        self._queue = names.hosts_watch(process)
        self._changes = asyncio.Event()
        self._session: Session | None = None
        self._hosts: dict[str, _Heard] = {}
        self._results: dict[str, asyncio.Future[HostResult]] = {}  # by request

    async def open(self, session: Session) -> None:
        """Listens on a new session. Raises BrokerError."""
        await session.declare_queue(self._queue, exclusive=True)
        await session.bind(self._queue, names.EVENTS_EXCHANGE, names.agent_key("*"))
        await session.consume(self._queue, self._on_state, prefetch=PREFETCH)
        self._session = session

    def close(self) -> None:
        """The session is lost."""
        self._session = None

    async def changed(self) -> None:
        """Returns when a host's state comes after this call."""
        await self._changes.wait()

    def states(self) -> dict[str, HostState]:
        """The hosts whose agents were heard lately, by name."""
        now = time.monotonic()
        for name, heard in list(self._hosts.items()):
            if now - heard.at > SILENT_SECONDS:
                del self._hosts[name]
        return {name: self._hosts[name].state for name in sorted(self._hosts)}

    async def request(self, host: str, request: AnyHostRequest) -> None:
        """Asks a host's agent; returns when it has accepted, and is about to do it.

        Raises NoSuchHost, Refusal with the host's reason, or Unavailable.
        """
        if not names.is_node_name(host):
            raise NoSuchHost(host)
        if self._session is None:
            raise Unavailable("the broker is not connected")
        result: asyncio.Future[HostResult] = asyncio.get_running_loop().create_future()
        self._results[request.number] = result
        try:
            async with asyncio.timeout(ANSWER_SECONDS):
                if not await self._session.publish("", names.agent(host), encode(request)):
                    raise NoSuchHost(host)
                answer = await result
        except NoSuchHost:
            raise
        except (TimeoutError, BrokerError) as error:
            raise Unavailable(f"the agent of {host} does not answer") from error
        finally:
            del self._results[request.number]
        if not answer.accepted:
            raise Refusal(f"{host}: {answer.note}")

    def _on_state(self, delivery: Delivery) -> None:
        delivery.ack()
        try:
            state = decode(delivery.body, HostState)
        except DecodeError as error:
            log.warning("undecodable state of a host dropped", reason=str(error))
            return
        for result in state.results:
            waiting = self._results.get(result.number)
            if waiting is not None and not waiting.done():
                waiting.set_result(result)
        if state.leaving:
            self._hosts.pop(state.name, None)
        elif state.name in self._hosts or len(self._hosts) < MAX_HOSTS:
            self._hosts[state.name] = _Heard(state, time.monotonic())
        changes, self._changes = self._changes, asyncio.Event()
        changes.set()
