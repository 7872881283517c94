"""Nodes' states as events: how a queue gets them, and whose word they are."""

from broker.node_state import NodeState
from broker.session import Delivery, Session
from topology import names


async def bind_states(session: Session, queue: str) -> None:
    """Has the queue get the states of all nodes. Raises BrokerError."""
    await session.bind(queue, names.EVENTS_EXCHANGE, names.state_key("*"))
    await session.bind(queue, names.EVENTS_EXCHANGE, names.JOINED_STATES)


def is_own(state: NodeState, delivery: Delivery) -> bool:
    """Whether the state came with a key that this node alone may use: the broker checks that."""
    key = delivery.routing_key
    return key == names.state_key(state.name) or key == names.joined_state_key(
        state.name, state.model
    )
