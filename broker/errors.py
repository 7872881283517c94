"""What can go wrong at the broker. `retryable`: the same call may succeed later, or elsewhere."""

from typing import ClassVar


class BrokerError(Exception):
    """The broker refused an operation; the text is for people, often the broker's own."""

    retryable: ClassVar[bool] = False


# ---- the session


class ConnectionLost(BrokerError):
    """The connection is gone, or was never made. Everything unacknowledged is delivered again."""

    retryable = True


class AccessRefused(BrokerError):
    """The operator's fault: wrong credentials, or a right that this user does not have."""


class BadAddress(BrokerError):
    """The operator's fault: CANOPY_AMQP_URL is malformed."""


class BadCertificate(BrokerError):
    """The operator's fault, or an attack: the server's certificate is not the pinned one, or not
    valid for its name.
    """


class Unsendable(BrokerError):
    """The caller's fault: AMQP cannot carry this message, as a name, the headers or the body is
    too large. Nothing was sent and the session is as it was.
    """


class QueueLocked(BrokerError):
    """Another connection holds this exclusive queue."""

    retryable = True


class NotFound(BrokerError):
    """No such queue or exchange."""


class PreconditionFailed(BrokerError):
    """The queue or exchange is in use, not empty, or exists with other arguments."""


# ---- messages


class DecodeError(BrokerError, ValueError):
    """The sender's fault: a body that is not what its consumer expects; the text says why."""


class NoSuchLetter(BrokerError):
    """The caller's fault: the queue of dead letters has none of that id now."""

    def __init__(self, letter_id: str) -> None:
        super().__init__(f"there is no dead letter {letter_id!r} now")
        self.letter_id = letter_id


class BadChange(BrokerError, ValueError):
    """The caller's fault: a change that does not make a job of it; the text names the field."""


# ---- nodes


class NameTaken(BrokerError):
    """A node of that name is registered already; it may leave."""

    retryable = True


class NoParent(BrokerError):
    """The node to hang below is not there; it may be about to come."""

    retryable = True


class NotAdmitted(BrokerError):
    """The operator's fault: the parent refuses this node; the text says why."""


class NoSuchNode(BrokerError):
    """The caller's fault: no node of that name is registered."""


class BadAction(BrokerError, ValueError):
    """The caller's fault: this cannot be done with this node; the text says why."""


class NoSuchHost(BrokerError):
    """The caller's fault: no agent of that name is connected."""

    def __init__(self, host: str) -> None:
        super().__init__(f"there is no host {host!r} with an agent (./canopy host list)")


class Refusal(BrokerError):
    """A host's agent, or the broker, refuses what it is asked; the text says why."""


# ---- requests


class Unavailable(BrokerError):
    """The broker is not connected, takes no publishes, or did not confirm in time."""

    retryable = True


class NoTree(BrokerError):
    """The caller's fault, or the operator's: no root is bound for that model."""


class ManagementError(BrokerError):
    """The management API does not answer, or refuses; the text says which."""

    retryable = True
