"""One process's view of all registered nodes, as they publish their states."""

from collections.abc import Callable

import structlog

from broker.encoding import decode, encode
from broker.errors import DecodeError
from broker.node_state import NodeState
from broker.node_states import NodeStates
from broker.registration import Registration
from broker.session import Delivery, Session
from broker.state_events import bind_states, is_own
from broker.wire import Ping
from topology import names

PREFETCH = 1000

log = structlog.get_logger()


class NodeWatch:
    """Follows the states of nodes that have a queue at the broker."""

    def __init__(self, process: str, on_change: Callable[[], None]) -> None:
        self.states = NodeStates()
        self._queue = names.watch(process)
        self._on_change = on_change
        self._registration = Registration(self._accept)

    async def open(self, session: Session) -> None:
        """Follows on a new session. Raises BrokerError."""
        await session.declare_queue(self._queue, exclusive=True)
        await bind_states(session, self._queue)
        await session.consume(self._queue, self._on_state, prefetch=PREFETCH)
        session.publish(names.CONTROL_EXCHANGE, "", encode(Ping()))

    async def check(self, session: Session) -> None:
        """Asks the broker about unknown nodes, until it is cancelled."""
        await self._registration.check(session)

    def _on_state(self, delivery: Delivery) -> None:
        delivery.ack()
        try:
            state = decode(delivery.body, NodeState)
        except DecodeError as error:
            log.warning("undecodable node state dropped", reason=str(error))
            return
        if is_own(state, delivery):
            self._registration.offer(state)

    def _accept(self, state: NodeState) -> None:
        if state.status == "stopped":
            self.states.remove(state.name)
        else:
            difference = self.states.add(state)
            if difference is not None:
                log.warning(
                    "a node's clock differs; set it (NTP)",
                    node=state.name,
                    seconds_ahead=round(difference, 1),
                )
        self._on_change()
