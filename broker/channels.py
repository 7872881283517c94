"""pika, wrapped: awaitable channels, confirmed publishes, batched acknowledgements.

pika is imported here, in `connections.py`, in `amqp.py`, which makes a session of these, and in
`tunnel_login.py`.
"""

import asyncio
from collections import OrderedDict
from collections.abc import Callable, Mapping
from typing import Any

import pika
import pika.exceptions
from pika.adapters.asyncio_connection import AsyncioConnection
from pika.channel import Channel

from broker.connections import translate
from broker.errors import BrokerError, ConnectionLost, Unsendable
from broker.limits import check_sendable

CALL_SECONDS = 15  # a declare or bind that takes longer means that the broker is in trouble


Lost = asyncio.Future[BrokerError]


class Calls:
    """Calls that wait for a reply; all of them fail when their channel or connection closes."""

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
    """A pika channel with awaitable calls. `closed` is resolved with the reason when it closes."""

    def __init__(self, raw: Channel, calls: Calls, closed: asyncio.Future[BrokerError]) -> None:
        self.raw = raw
        self.closed = closed
        self._calls = calls

    @classmethod
    async def open(cls, connection: AsyncioConnection, lost: Lost) -> "OpenChannel":
        """Opens a channel. `lost` is resolved when the connection ends.

        pika does not report a channel as closed if its connection ends before it is open.
        """
        if not connection.is_open:
            raise ConnectionLost("the connection is closed")
        calls = Calls()
        closed: asyncio.Future[BrokerError] = asyncio.get_running_loop().create_future()

        def on_close(_channel: Channel, error: BaseException) -> None:
            reason = translate(error)
            calls.fail(reason)
            if not closed.done():
                closed.set_result(reason)

        def begin(*, callback: Callable[[Channel], None]) -> None:
            def opened(channel: Channel) -> None:
                channel.add_on_close_callback(on_close)
                callback(channel)

            connection.channel(on_open_callback=opened)

        def fail(lost: Lost) -> None:
            calls.fail(lost.result())

        lost.add_done_callback(fail)
        try:
            raw: Channel = await calls.call(begin)
        finally:
            lost.remove_done_callback(fail)
        return cls(raw, calls, closed)

    async def call(self, method: str, /, **kwargs: Any) -> Any:
        return await self._calls.call(getattr(self.raw, method), **kwargs)


def _fail(outcome: asyncio.Future[bool], error: BrokerError) -> None:
    """Fails a publish."""
    outcome.set_exception(error)
    outcome.exception()  # retrieved, so that nobody needs to wait for it


def _unsent(error: Exception) -> BrokerError:
    """Why a publish did not leave this process."""
    if isinstance(error, BrokerError):
        return error
    if isinstance(error, pika.exceptions.ConnectionClosed | pika.exceptions.ChannelWrongStateError):
        return ConnectionLost(str(error) or "the connection is closed")
    return Unsendable(f"{type(error).__name__}: {error}")


class Publisher:
    """Publishes with confirms, many in flight. pika numbers them; so do we.

    `refused(reason)` is called when the broker could not take a message (basic.nack): a queue
    behind it may be in trouble. `user`: what each message says about its sender, which the broker
    checks; None: nothing.
    """

    def __init__(
        self,
        channel: OpenChannel,
        refused: Callable[[BrokerError], None],
        user: str | None = None,
    ) -> None:
        self._user = user
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
        self._channel.closed.add_done_callback(self._on_channel_closed)

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
            user_id=self._user,
        )
        try:
            check_sendable(exchange, key, body, headers)
            self._channel.raw.basic_publish(exchange, key, body, properties, mandatory=True)
        except Exception as error:
            # fate: this publish alone fails. pika encodes the whole message before it writes the
            # first byte, so the broker has not numbered it, and neither do we.
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

    def _on_channel_closed(self, closed: asyncio.Future[BrokerError]) -> None:
        self.fail(closed.result())

    def _on_return(
        self, _channel: Channel, _method: object, properties: pika.BasicProperties, _body: bytes
    ) -> None:
        self._returned.add(int(properties.message_id or 0))

    def _on_confirm(self, frame: Any) -> None:
        """An ack or nack, for one tag or for all up to it. A return always comes before its ack."""
        last: int = frame.method.delivery_tag
        first = last
        if frame.method.multiple:
            first, self._oldest = self._oldest, last + 1
        taken = isinstance(frame.method, pika.spec.Basic.Ack)
        for tag in range(first, last + 1):
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
    """Acknowledges deliveries at the end of the turn in which they were settled.

    One frame acknowledges all up to the first unsettled delivery, and one each of those behind it.
    It must hear of every delivery of its channel, in order.
    """

    def __init__(self, channel: Channel) -> None:
        self._channel = channel
        self._last = 0  # the newest delivery
        # unsettled, oldest first; a plain dict is slow to find its first key after deletions
        self._unsettled: OrderedDict[int, None] = OrderedDict()
        self._settled: list[int] = []  # in this turn

    def delivered(self, tag: int) -> None:
        self._unsettled[tag] = None
        self._last = tag

    def settle(self, tag: int, done: bool) -> None:
        del self._unsettled[tag]
        if done:
            if not self._settled:
                asyncio.get_running_loop().call_soon(self._flush)
            self._settled.append(tag)
        elif self._channel.is_open:
            self._channel.basic_nack(tag, requeue=True)

    def _flush(self) -> None:
        settled, self._settled = self._settled, []
        if not self._channel.is_open:
            return  # the broker has requeued the messages already
        first_unsettled = next(iter(self._unsettled), self._last + 1)
        together = [tag for tag in settled if tag < first_unsettled]
        if together:
            self._channel.basic_ack(max(together), multiple=True)
        for tag in settled:
            if tag > first_unsettled:
                self._channel.basic_ack(tag)
