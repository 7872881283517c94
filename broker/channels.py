"""pika, wrapped: connections, channels whose calls are awaited, publishes that are confirmed, joined acknowledgements.

pika is imported here and in `amqp.py`, which makes a session of these, and nowhere else.
"""

import asyncio
import logging
from collections import OrderedDict
from collections.abc import Callable, Mapping
from typing import Any

import pika
import pika.exceptions
from pika.adapters.asyncio_connection import AsyncioConnection
from pika.channel import Channel

from broker.limits import check_sendable
from broker.session import (
    AccessRefused,
    BrokerError,
    ConnectionLost,
    NotFound,
    QueueLocked,
    Unsendable,
)

HEARTBEAT_SECONDS = 6  # a frozen peer is noticed within about twice this
CONNECT_SECONDS = 10.0  # for all addresses together
CALL_SECONDS = 15  # a declare or bind that takes longer means a broker in trouble


class PreconditionFailed(BrokerError):
    """The queue is not empty, or exists with other arguments."""


_CHANNEL_ERRORS: dict[int, type[BrokerError]] = {
    403: AccessRefused,
    404: NotFound,
    405: QueueLocked,
    406: PreconditionFailed,
}

Lost = asyncio.Future[BrokerError]


def translate(error: BaseException) -> BrokerError:
    """pika's exception as one of ours."""
    if isinstance(error, BrokerError):
        return error
    if isinstance(error, pika.exceptions.ChannelClosed):
        return _CHANNEL_ERRORS.get(error.reply_code, BrokerError)(error.reply_text)
    while (
        isinstance(error, pika.adapters.utils.connection_workflow.AMQPConnectorException)
        and error.args
    ):
        inner = (
            error.args[0]
            if isinstance(error.args[0], BaseException)
            else getattr(error, "exceptions", [None])[-1]
        )
        if inner is None:
            break
        error = inner
    if isinstance(
        error, pika.exceptions.ProbableAuthenticationError | pika.exceptions.AuthenticationError
    ):
        return AccessRefused("the broker refused the user name or password")
    return ConnectionLost(str(error) or type(error).__name__)


class Calls:
    """The replies being waited for; all of them fail when their channel or connection closes."""

    def __init__(self) -> None:
        self._waiting: set[asyncio.Future[Any]] = set()

    async def call(self, method: Callable[..., Any], /, *args: Any, **kwargs: Any) -> Any:
        """Calls a pika method that takes `callback` and returns the reply frame."""
        reply: asyncio.Future[Any] = asyncio.get_running_loop().create_future()
        self._waiting.add(reply)

        def arrived(frame: object) -> None:
            if not reply.done():
                reply.set_result(frame)

        try:
            async with asyncio.timeout(CALL_SECONDS):
                method(*args, callback=arrived, **kwargs)
                return await reply
        except TimeoutError as error:
            raise ConnectionLost("the broker does not answer") from error
        except pika.exceptions.ShortStringTooLong as error:
            raise Unsendable("a name is longer than AMQP allows") from error
        except UnicodeEncodeError as error:
            raise Unsendable("a name is not valid Unicode") from error
        except pika.exceptions.AMQPError as error:
            raise translate(error) from error
        finally:
            self._waiting.discard(reply)

    def fail(self, error: BrokerError) -> None:
        for reply in self._waiting:
            if not reply.done():
                reply.set_exception(error)


class OpenChannel:
    """A pika channel with awaitable calls."""

    def __init__(self) -> None:
        self.raw: Channel
        self._calls = Calls()
        self.closed: asyncio.Future[BrokerError] = asyncio.get_running_loop().create_future()

    @classmethod
    async def open(cls, connection: AsyncioConnection, lost: Lost) -> "OpenChannel":
        """`lost`: resolved when the connection ends. One that ends first never reports the channel as closed."""
        if not connection.is_open:
            raise ConnectionLost("the connection is closed")
        self = cls()

        def begin(*, callback: Callable[[object], None]) -> None:
            def opened(channel: Channel) -> None:
                channel.add_on_close_callback(self._on_close)
                callback(channel)

            self.raw = connection.channel(on_open_callback=opened)

        def fail(lost: Lost) -> None:
            self._calls.fail(lost.result())

        lost.add_done_callback(fail)
        try:
            await self._calls.call(begin)
        finally:
            lost.remove_done_callback(fail)
        return self

    async def call(self, method: str, /, **kwargs: Any) -> Any:
        return await self._calls.call(getattr(self.raw, method), **kwargs)

    def _on_close(self, _channel: Channel, error: BaseException) -> None:
        reason = translate(error)
        self._calls.fail(reason)
        if not self.closed.done():
            self.closed.set_result(reason)


class Connection(AsyncioConnection):
    """Sends all that one turn of the event loop has to say at once. pika makes a system call a frame, of which a
    publish has three, and each of them wakes the broker.
    """

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        self._unsent: list[bytes] = []
        super().__init__(*args, **kwargs)

    def _adapter_emit_data(self, data: bytes) -> None:
        """What pika's Connection asks of its adapters: send this soon, in this order."""
        if not self._unsent:
            asyncio.get_running_loop().call_soon(self._flush)
        self._unsent.append(data)

    def _flush(self) -> None:
        data, self._unsent = b"".join(self._unsent), []
        if not self.is_closed:  # else it was lost in this turn
            super()._adapter_emit_data(data)  # type: ignore[misc]  # the stubs know only what users call


async def connect(url: str, name: str) -> AsyncioConnection:
    """An open connection. Raises ConnectionLost, AccessRefused, or BrokerError for a malformed address."""
    # pika logs every refused connection at ERROR with a traceback; our own callers report the reason once
    logging.getLogger("pika").setLevel(logging.CRITICAL)
    try:
        parameters = pika.URLParameters(url)
    except (ValueError, TypeError) as error:  # such as an option that pika does not know
        raise BrokerError(f"malformed broker address: {error}") from error
    parameters.heartbeat = HEARTBEAT_SECONDS
    parameters.socket_timeout = parameters.stack_timeout = CONNECT_SECONDS
    parameters.connection_attempts = 1
    parameters.client_properties = {"connection_name": name}
    opened: asyncio.Future[AsyncioConnection] = asyncio.get_running_loop().create_future()

    def failed(_connection: object, error: str | BaseException) -> None:
        if not opened.done():
            opened.set_exception(
                ConnectionLost(error) if isinstance(error, str) else translate(error)
            )

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


def _fail(outcome: asyncio.Future[bool], error: BrokerError) -> None:
    """Fails a publish; one that nobody waits for leaves no warning."""
    outcome.set_exception(error)
    outcome.exception()


def _unsent(error: Exception) -> BrokerError:
    """Why a publish did not leave this process."""
    if isinstance(error, BrokerError):
        return error
    if isinstance(error, pika.exceptions.ConnectionClosed | pika.exceptions.ChannelWrongStateError):
        return ConnectionLost(str(error) or "the connection is closed")
    return Unsendable(f"{type(error).__name__}: {error}")


class Publisher:
    """Publishes with confirms, many under way at once. pika numbers them; so do we.

    `refused` is told when the broker could not take a message (basic.nack): something behind it may be half lost.
    """

    def __init__(self, channel: OpenChannel, refused: Callable[[BrokerError], None]) -> None:
        self._channel = channel
        self._refused = refused
        self._loop = asyncio.get_running_loop()
        self._sent = 0
        self._oldest = 1  # every tag below it is settled
        self._waiting: dict[int, asyncio.Future[bool]] = {}
        self._returned: set[int] = set()

    async def start(self) -> None:
        self._channel.raw.add_on_return_callback(self._on_return)
        await self._channel.call("confirm_delivery", ack_nack_callback=self._on_confirm)
        self._channel.closed.add_done_callback(lambda closed: self.fail(closed.result()))

    def publish(
        self,
        exchange: str,
        key: str,
        body: bytes,
        persistent: bool,
        headers: Mapping[str, object] | None,
    ) -> asyncio.Future[bool]:
        outcome: asyncio.Future[bool] = self._loop.create_future()
        if not self._channel.raw.is_open:
            _fail(outcome, ConnectionLost("the connection is closed"))
            return outcome
        tag = self._sent + 1
        properties = pika.BasicProperties(
            content_type="application/json",
            delivery_mode=2 if persistent else 1,
            message_id=str(tag),  # a returned message names its publish by this
            headers=dict(headers) if headers else None,
        )
        try:
            check_sendable(exchange, key, body, headers)
            self._channel.raw.basic_publish(exchange, key, body, properties, mandatory=True)
        except Exception as error:
            # fate: this publish alone fails. pika encodes all of a message before it writes the first byte of it, so
            # the broker has not numbered it, and neither do we.
            _fail(outcome, _unsent(error))
            return outcome
        self._sent = tag
        self._waiting[tag] = outcome
        return outcome

    def fail(self, error: BrokerError) -> None:
        waiting, self._waiting = self._waiting, {}
        for outcome in waiting.values():
            if not outcome.done():
                _fail(outcome, error)

    def _on_return(
        self, _channel: Channel, _method: object, properties: pika.BasicProperties, _body: bytes
    ) -> None:
        self._returned.add(int(properties.message_id or 0))

    def _on_confirm(self, frame: Any) -> None:
        """An ack or nack, for one tag or for all up to it. A return always comes before its ack."""
        last: int = frame.method.delivery_tag
        tags = range(self._oldest, last + 1) if frame.method.multiple else (last,)
        if frame.method.multiple:
            self._oldest = last + 1
        taken = isinstance(frame.method, pika.spec.Basic.Ack)
        for tag in tags:
            outcome = self._waiting.pop(tag, None)
            routed = tag not in self._returned
            self._returned.discard(tag)
            if outcome is None or outcome.done():
                continue
            if taken:
                outcome.set_result(routed)
            else:
                _fail(outcome, BrokerError("the broker could not take a message"))
        if not taken:
            self._refused(BrokerError("the broker could not take a message"))


class Acknowledger:
    """Acknowledges deliveries at the end of the turn in which they were settled: with one frame for all up to the first
    that is still open, and one for each of those behind it. Told of every delivery of its channel, in their order.
    """

    def __init__(self, channel: Channel) -> None:
        self._channel = channel
        self._last = 0  # the newest delivery
        self._open: OrderedDict[int, None] = (
            OrderedDict()
        )  # not settled, oldest first (a dict finds that slowly)
        self._settled: list[int] = []  # in this turn

    def delivered(self, tag: int) -> None:
        self._open[tag] = None
        self._last = tag

    def settle(self, tag: int, done: bool) -> None:
        del self._open[tag]
        if done:
            if not self._settled:
                asyncio.get_running_loop().call_soon(self._flush)
            self._settled.append(tag)
        elif self._channel.is_open:
            self._channel.basic_nack(tag, requeue=True)

    def _flush(self) -> None:
        settled, self._settled = self._settled, []
        if not self._channel.is_open:
            return  # the broker has taken the messages back already
        first_open = next(iter(self._open), self._last + 1)
        together = [tag for tag in settled if tag < first_open]
        if together:
            self._channel.basic_ack(max(together), multiple=True)
        for tag in settled:
            if tag > first_open:
                self._channel.basic_ack(tag)
