"""Messages of one API process to every node.

A node remembers what it is told about a job that has not arrived there yet, but one that was away
has missed it: the caller repeats the message whenever it sees a reason to.
"""

import asyncio

from broker.encoding import encode
from broker.session import Session
from broker.wire import Cancel, Supersede
from topology import names

REPEAT_SECONDS = 1.0  # the same broadcast is not repeated sooner

Message = Cancel | Supersede


class Broadcasts:
    """Sends each message once in REPEAT_SECONDS at most, and none while the broker is away."""

    def __init__(self) -> None:
        self._session: Session | None = None
        self._sent: dict[Message, float] = {}  # recent ones with their loop time, oldest first

    def open(self, session: Session) -> None:
        """Sends on a new session."""
        self._session = session

    def close(self) -> None:
        """The session is lost, and perhaps the latest messages with it."""
        self._session = None
        self._sent.clear()

    def send(self, message: Message) -> None:
        """Publishes the message to all nodes. Never waits."""
        now = asyncio.get_running_loop().time()
        self._forget(now - REPEAT_SECONDS)
        if self._session is None or message in self._sent:
            return
        self._sent[message] = now
        self._session.publish(names.CONTROL_EXCHANGE, "", encode(message))

    def _forget(self, until: float) -> None:
        while self._sent:
            oldest = next(iter(self._sent))
            if self._sent[oldest] > until:
                return
            del self._sent[oldest]
