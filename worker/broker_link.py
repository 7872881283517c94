"""A node's way to the broker: the port on its present session, which changes with each session."""

from broker.errors import ConnectionLost
from broker.node import NodePort


class BrokerLink:
    """Shared by the parts of a node. `life.py` alone opens it, once for each session."""

    def __init__(self) -> None:
        self._port: NodePort | None = None

    @property
    def port(self) -> NodePort:
        """The port. After a loss it stays the old one, whose calls fail, until the next session.

        Raises ConnectionLost before the first session.
        """
        if self._port is None:
            raise ConnectionLost("the node has had no session yet")
        return self._port

    @property
    def connected(self) -> bool:
        """Whether there is a session now."""
        return self._port is not None and not self._port.session.closed.done()

    @property
    def joined(self) -> bool:
        """Whether the present session, or the last one, is a joined node's."""
        return self._port is not None and self._port.session.joined is not None

    def open(self, port: NodePort) -> None:
        """A new session has begun."""
        self._port = port
