"""Connections to the broker through pika, and why one could not be made."""

import asyncio
import functools
import logging
import socket
import ssl
from collections.abc import Iterable
from typing import Any

import pika
import pika.exceptions
from pika.adapters.asyncio_connection import AsyncioConnection
from pika.adapters.utils import connection_workflow

from broker.addresses import Address
from broker.errors import (
    AccessRefused,
    BadAddress,
    BadCertificate,
    BrokerError,
    ConnectionLost,
    NotFound,
    PreconditionFailed,
    QueueLocked,
)
from broker.tls import WrongCertificate, client_context

HEARTBEAT_SECONDS = 6  # a frozen peer is noticed within about twice this
CLOSE_SECONDS = 2.0  # longest wait for connections to close
CONNECT_SECONDS = 10.0  # for all addresses together
# The kernel ends a connection whose peer's kernel has been silent for so long. It answers however
# busy the peer's processes are: only a cut link or a dead machine is noticed by this.
LOST_SECONDS = 6
_KEEPALIVE = {"TCP_KEEPIDLE": 2, "TCP_KEEPINTVL": 2, "TCP_KEEPCNT": LOST_SECONDS // 2}
# This also ends a connection whose peer reads nothing for so long, as the broker does with a
# connection that publishes while there is an alarm.
_USER_TIMEOUT = {"TCP_USER_TIMEOUT": LOST_SECONDS * 1000}

_CHANNEL_ERRORS: dict[int, type[BrokerError]] = {
    403: AccessRefused,
    404: NotFound,
    405: QueueLocked,
    406: PreconditionFailed,
}


class Connection(AsyncioConnection):
    """Writes all frames of one turn of the event loop at once.

    pika makes a system call for each frame, a publish has three, and each call wakes the broker.
    """

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        self._unsent: list[bytes] = []
        super().__init__(*args, **kwargs)

    def _adapter_emit_data(self, data: bytes) -> None:
        """Overrides pika's hook for adapters: send this soon, in this order."""
        if not self._unsent:
            asyncio.get_running_loop().call_soon(self._flush)
        self._unsent.append(data)

    def _flush(self) -> None:
        data, self._unsent = b"".join(self._unsent), []
        if not self.is_closed:
            super()._adapter_emit_data(data)  # type: ignore[misc]  # not in the stubs


async def connect(address: Address, name: str, *, publishes: bool) -> AsyncioConnection:
    """An open connection. Raises ConnectionLost, AccessRefused, BadCertificate or BadAddress."""
    # pika logs every refused connection at ERROR with a traceback; our callers report it once
    logging.getLogger("pika").setLevel(logging.CRITICAL)
    if not address.tunnelled:
        return await _open(address, _parameters(address, name, publishes))
    from broker.tunnel import Tunnel  # here, as few connections need one

    try:
        tunnel = await Tunnel.open(address)
    except OSError as error:
        raise refusal(address, error) from error
    try:
        return await _open(address, _parameters(Address(tunnel.url, None), name, publishes))
    except BaseException:
        await tunnel.close()
        raise


async def _open(address: Address, parameters: pika.URLParameters) -> AsyncioConnection:
    opened: asyncio.Future[AsyncioConnection] = asyncio.get_running_loop().create_future()

    def failed(_connection: object, error: str | BaseException) -> None:
        if opened.done():
            return
        if isinstance(error, str):
            opened.set_exception(ConnectionLost(error))
        else:
            opened.set_exception(refusal(address, error))

    def succeeded(connection: Any) -> None:
        if opened.cancelled():
            connection.close()
        elif not opened.done():
            opened.set_result(connection)

    Connection(
        parameters,
        on_open_callback=succeeded,
        on_open_error_callback=failed,
        on_close_callback=failed,
    )
    return await opened


def _parameters(address: Address, name: str, publishes: bool) -> pika.URLParameters:
    """Raises BadAddress."""
    try:
        parameters = pika.URLParameters(address.url)
    except (ValueError, TypeError) as error:  # an option that pika does not know, for example
        raise BadAddress(f"malformed broker address: {error}") from error
    parameters.heartbeat = HEARTBEAT_SECONDS
    parameters.socket_timeout = parameters.stack_timeout = CONNECT_SECONDS
    parameters.connection_attempts = 1
    parameters.client_properties = {"connection_name": name}
    parameters.tcp_options = _KEEPALIVE if publishes else {**_KEEPALIVE, **_USER_TIMEOUT}
    if address.secure:
        parameters.ssl_options = pika.SSLOptions(client_context(address.fingerprint))
    return parameters


def translate(error: BaseException) -> BrokerError:
    """pika's exception as one of ours."""
    if isinstance(error, BrokerError):
        return error
    if isinstance(error, pika.exceptions.ChannelClosed):
        return _CHANNEL_ERRORS.get(error.reply_code, BrokerError)(error.reply_text)
    error = _innermost(error)
    if isinstance(
        error, pika.exceptions.ProbableAuthenticationError | pika.exceptions.AuthenticationError
    ):
        return AccessRefused("the broker refused the user name or password")
    # A limit of connections, which is refused so too, is over some time.
    if isinstance(error, pika.exceptions.ProbableAccessDeniedError) and "limit" not in str(error):
        return AccessRefused(f"the broker lets this user in nowhere: {error}")
    return ConnectionLost(str(error) or type(error).__name__)


def _innermost(error: BaseException) -> BaseException:
    """What pika's connection workflow wraps, sometimes more than once."""
    while True:
        inner: object = None
        if isinstance(error, connection_workflow.AMQPConnectionWorkflowFailed):
            inner = error.exceptions[-1]
        elif isinstance(error, connection_workflow.AMQPConnectorPhaseErrorBase):
            inner = error.exception
        elif isinstance(error, pika.exceptions.AMQPConnectionError) and error.args:
            inner = error.args[0]
        if not isinstance(inner, BaseException):
            return error
        error = inner


def refusal(address: Address, error: BaseException) -> BrokerError:
    """Why no connection to `address` was made, and what that may mean."""
    cause = _innermost(error)
    place = address.place
    if isinstance(cause, ssl.SSLError):
        return _tls_refusal(place, cause)
    if isinstance(cause, OSError) and cause.strerror:
        return ConnectionLost(f"{place}: {_network_refusal(cause)}")
    if isinstance(
        cause, pika.exceptions.IncompatibleProtocolError | pika.exceptions.StreamLostError
    ):
        hint = "is that the broker's port?"
        if not address.secure:
            hint = "is that its TLS port? Then the address begins with amqps://"
        return ConnectionLost(f"{place} ended the connection before it was open: {hint}")
    return translate(error)


def _tls_refusal(place: str, error: ssl.SSLError) -> BrokerError:
    if isinstance(error, WrongCertificate):
        return BadCertificate(
            f"{place} has another certificate than the pinned one: it is another server, or "
            f"its certificate was replaced (it has {error.args[0]})"
        )
    if isinstance(error, ssl.SSLCertVerificationError):
        return BadCertificate(f"{place}: {error.verify_message}")
    return ConnectionLost(
        f"{place} does not speak TLS as expected: is that the broker's TLS port? "
        f"({error.reason or error})"
    )


def _network_refusal(error: OSError) -> str:
    if isinstance(error, socket.gaierror):
        return f"there is no such host ({error.strerror})"
    if isinstance(error, ConnectionRefusedError):
        return "nothing listens there: is that the broker's port?"
    return str(error.strerror)


async def close_connections(connections: Iterable[AsyncioConnection]) -> None:
    """Closes them, and returns when they are closed, or soon anyway."""
    closing: list[asyncio.Future[None]] = []
    for connection in connections:
        if connection.is_closed:
            continue
        closed: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        connection.add_on_close_callback(functools.partial(_resolve, closed))
        closing.append(closed)
        if connection.is_open:
            connection.close()
    if closing:
        await asyncio.wait(closing, timeout=CLOSE_SECONDS)


def _resolve(closed: asyncio.Future[None], *_: object) -> None:
    if not closed.done():
        closed.set_result(None)


def virtual_host(connection: AsyncioConnection) -> str:
    """Where its objects are."""
    return str(getattr(connection.params, "virtual_host", "/"))  # the stubs know of no parameters
