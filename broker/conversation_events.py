"""Changes in conversations, which the API processes publish to each other.

A change that is published while the broker is away reaches no other process, so each one is told
when a connection begins: what it has missed until then it must read again.
"""

from collections.abc import Callable
from typing import Literal

import structlog

from broker.bounds import Count, Name
from broker.encoding import decode, encode
from broker.errors import DecodeError
from broker.session import Delivery, Session
from broker.wire import Wire
from topology import names

PREFETCH = 1000
log = structlog.get_logger()


class ConversationChange(Wire, frozen=True, kw_only=True):
    """Something changed in a user's conversations. API processes publish it to each other.

    It carries no content: a process whose readers are concerned loads the rows. Ids are keys of
    rows. `conversation`: None if so many changed that the whole list is to be read again.
    """

    process: Name  # the sender, which ignores its own copy
    user: Count
    change: Literal["created", "updated", "deleted"] = "updated"
    conversation: Count | None = None
    message: Count | None = None  # a new or changed message of the conversation


Listener = Callable[[ConversationChange | None], None]


class ConversationEvents:
    """One API process's part of the exchange of changes."""

    def __init__(self, process: str) -> None:
        self.process = process
        self._session: Session | None = None
        self._listener: Listener | None = None

    def listen(self, listener: Listener) -> None:
        """Calls `listener` with each change from another process, and with None for a gap."""
        self._listener = listener

    def publish(self, change: ConversationChange) -> None:
        """Sends the change to the other processes, if the broker is connected. Never waits."""
        if self._session is not None:
            key = names.conversation_key(str(change.user))
            self._session.publish(names.EVENTS_EXCHANGE, key, encode(change))

    async def open(self, session: Session) -> None:
        """Listens on a new session. Raises BrokerError."""
        queue = names.conversations_watch(self.process)
        await session.declare_queue(queue, exclusive=True)
        await session.bind(queue, names.EVENTS_EXCHANGE, names.conversation_key("*"))
        await session.consume(queue, self._on_change, prefetch=PREFETCH)
        self._session = session
        self._notify(None)

    def close(self) -> None:
        """The session is lost."""
        self._session = None

    def _on_change(self, delivery: Delivery) -> None:
        delivery.ack()
        try:
            change = decode(delivery.body, ConversationChange)
        except DecodeError as error:
            log.warning("undecodable change of a conversation dropped", reason=str(error))
            return
        if change.process != self.process:
            self._notify(change)

    def _notify(self, change: ConversationChange | None) -> None:
        if self._listener is not None:
            self._listener(change)
