"""A session on RabbitMQ through pika's asyncio adapter: two connections, one to publish and one for all else.

They are apart because a memory or disk alarm blocks a connection that publishes: acknowledgements and heartbeats
of the other one keep flowing. pika is imported here and nowhere else.
"""

import asyncio
import functools
import logging
import random
from collections import OrderedDict
from collections.abc import Callable, Mapping
from typing import Any

import pika
import pika.exceptions
from pika.adapters.asyncio_connection import AsyncioConnection
from pika.channel import Channel

from broker.addresses import addresses
from broker.session import (
    AccessRefused,
    BrokerError,
    ConnectionLost,
    Delivery,
    DeliveryHandler,
    ExchangeKind,
    NotFound,
    QueueLocked,
)

HEARTBEAT_SECONDS = 6  # a frozen peer is noticed within about twice this
CONNECT_SECONDS = 10.0  # for all addresses together
ADDRESS_SECONDS = 3.0  # but for each at least this, however many there are
CALL_SECONDS = 15  # a declare or bind that takes longer means a broker in trouble
CHECK_SECONDS = 5.0  # how often a session looks whether its exclusive queues are still there

# A quorum queue drops a message that was delivered again more often than this. RabbitMQ 4 sets 20 where nothing is
# said, and its "no limit" (-1) means 0 to RabbitMQ 3. A number never reached means the same to both, survives an
# upgrade, and lets the queue put back what is requeued at its old place instead of at its end.
DELIVERY_LIMIT = 1_000_000


class _PreconditionFailed(BrokerError):
    """The queue is not empty, or exists with other arguments."""


_CHANNEL_ERRORS: dict[int, type[BrokerError]] = {
    403: AccessRefused,
    404: NotFound,
    405: QueueLocked,
    406: _PreconditionFailed,
}

Lost = asyncio.Future[BrokerError]


def _translate(error: BaseException) -> BrokerError:
    """pika's exception as one of ours."""
    if isinstance(error, BrokerError):
        return error
    if isinstance(error, pika.exceptions.ChannelClosed):
        return _CHANNEL_ERRORS.get(error.reply_code, BrokerError)(error.reply_text)
    while isinstance(error, pika.adapters.utils.connection_workflow.AMQPConnectorException) and error.args:
        inner = error.args[0] if isinstance(error.args[0], BaseException) else getattr(error, "exceptions", [None])[-1]
        if inner is None:
            break
        error = inner
    if isinstance(error, pika.exceptions.ProbableAuthenticationError | pika.exceptions.AuthenticationError):
        return AccessRefused("the broker refused the user name or password")
    return ConnectionLost(str(error) or type(error).__name__)


class _Calls:
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
        except pika.exceptions.AMQPError as error:
            raise _translate(error) from error
        finally:
            self._waiting.discard(reply)

    def fail(self, error: BrokerError) -> None:
        for reply in self._waiting:
            if not reply.done():
                reply.set_exception(error)


class _OpenChannel:
    """A pika channel with awaitable calls."""

    def __init__(self) -> None:
        self.raw: Channel
        self._calls = _Calls()
        self.closed: asyncio.Future[BrokerError] = asyncio.get_running_loop().create_future()

    @classmethod
    async def open(cls, connection: AsyncioConnection, lost: Lost) -> "_OpenChannel":
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
        reason = _translate(error)
        self._calls.fail(reason)
        if not self.closed.done():
            self.closed.set_result(reason)


class _Connection(AsyncioConnection):
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


async def _connect(url: str, name: str) -> AsyncioConnection:
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
            opened.set_exception(ConnectionLost(error) if isinstance(error, str) else _translate(error))

    def succeeded(connection: Any) -> None:
        if opened.cancelled():
            connection.close()
        elif not opened.done():
            opened.set_result(connection)

    _Connection(parameters, on_open_callback=succeeded, on_open_error_callback=failed, on_close_callback=failed)
    return await opened


def _fail(outcome: asyncio.Future[bool], error: BrokerError) -> None:
    """Fails a publish; one that nobody waits for leaves no warning."""
    outcome.set_exception(error)
    outcome.exception()


class _Publisher:
    """Publishes with confirms, many under way at once. pika numbers them; so do we.

    `refused` is told when the broker could not take a message (basic.nack): something behind it may be half lost.
    """

    def __init__(self, channel: _OpenChannel, refused: Callable[[BrokerError], None]) -> None:
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
        self, exchange: str, key: str, body: bytes, persistent: bool, headers: Mapping[str, object] | None
    ) -> asyncio.Future[bool]:
        outcome: asyncio.Future[bool] = self._loop.create_future()
        if not self._channel.raw.is_open:
            _fail(outcome, ConnectionLost("the connection is closed"))
            return outcome
        self._sent += 1
        self._waiting[self._sent] = outcome
        properties = pika.BasicProperties(
            content_type="application/json",
            delivery_mode=2 if persistent else 1,
            message_id=str(self._sent),  # a returned message names its publish by this
            headers=dict(headers) if headers else None,
        )
        self._channel.raw.basic_publish(exchange, key, body, properties, mandatory=True)
        return outcome

    def fail(self, error: BrokerError) -> None:
        waiting, self._waiting = self._waiting, {}
        for outcome in waiting.values():
            if not outcome.done():
                _fail(outcome, error)

    def _on_return(self, _channel: Channel, _method: object, properties: pika.BasicProperties, _body: bytes) -> None:
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


class _Acknowledger:
    """Acknowledges deliveries at the end of the turn in which they were settled: with one frame for all up to the first
    that is still open, and one for each of those behind it. Told of every delivery of its channel, in their order.
    """

    def __init__(self, channel: Channel) -> None:
        self._channel = channel
        self._last = 0  # the newest delivery
        self._open: OrderedDict[int, None] = OrderedDict()  # not settled, oldest first (a dict finds that slowly)
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


class AmqpSession:
    """See broker.session.Session."""

    def __init__(self, connections: list[AsyncioConnection], queue_type: str) -> None:
        self._queue_type = queue_type
        self.closed: asyncio.Future[BrokerError] = asyncio.get_running_loop().create_future()
        self.deletes = queue_type != "quorum"  # those cannot refuse it when a message has come
        self.blocking = asyncio.Event()
        self.flowing = asyncio.Event()
        self.flowing.set()
        self._connections = connections
        self._main: _OpenChannel  # consumes and acknowledges
        self._acknowledger: _Acknowledger
        self._asking: _OpenChannel | None = None  # all that the broker may refuse, which closes the channel
        self._publisher: _Publisher
        self._exclusive: set[str] = set()
        self._checking: asyncio.Task[None] | None = None
        self._one_question = asyncio.Lock()
        self._one_consume = asyncio.Lock()

    @classmethod
    async def open(cls, url: str, name: str, *, queue_type: str = "classic") -> "AmqpSession":
        """Connects twice. `name` is shown in RabbitMQ's list of connections. Durable queues are declared as
        `queue_type` (classic, or quorum on a cluster). Of several addresses in `url` (see broker.addresses) a random
        one is used that answers. Raises ConnectionLost, AccessRefused, or BrokerError if `url` is malformed.
        """
        candidates = addresses(url)
        random.shuffle(candidates)
        seconds = max(ADDRESS_SECONDS, CONNECT_SECONDS / len(candidates))
        lost = ConnectionLost("no address")
        for candidate in candidates:
            try:
                return await cls._open_one(candidate, name, queue_type, seconds)
            except ConnectionLost as error:
                lost = error
        raise lost

    @classmethod
    async def _open_one(cls, url: str, name: str, queue_type: str, seconds: float) -> "AmqpSession":
        """Both connections on one broker: a broker that dies takes all of a session, or nothing."""
        connections: list[AsyncioConnection] = []
        self = cls(connections, queue_type)
        try:
            async with asyncio.timeout(seconds):
                connections.append(await _connect(url, name))
                connections.append(await _connect(url, f"{name} (publish)"))
                for connection in connections:
                    connection.add_on_close_callback(self._on_connection_closed)
                publish = connections[1]
                publish.add_on_connection_blocked_callback(lambda *_: self._alarm(True))
                publish.add_on_connection_unblocked_callback(lambda *_: self._alarm(False))
                self._main = await _OpenChannel.open(connections[0], self.closed)
                self._acknowledger = _Acknowledger(self._main.raw)
                publishing = await _OpenChannel.open(publish, self.closed)
                self._publisher = _Publisher(publishing, self._lost)
                await self._publisher.start()
        except BaseException as error:
            await self.close()
            if isinstance(error, TimeoutError):
                raise ConnectionLost("the broker does not answer") from error
            raise
        self._main.raw.add_on_cancel_callback(self._on_consumer_cancelled)
        for channel in (self._main, publishing):
            channel.closed.add_done_callback(lambda closed: self._lost(closed.result()))
        self._checking = asyncio.create_task(self._check_exclusive(), name=f"exclusive queues of {name}")
        return self

    @property
    def blocked(self) -> bool:
        """The broker takes no publishes now (memory or disk alarm)."""
        return self.blocking.is_set()

    async def declare_exchange(self, name: str, kind: ExchangeKind) -> None:
        await self._ask("exchange_declare", exchange=name, exchange_type=kind, durable=True)

    async def declare_queue(self, name: str, *, exclusive: bool = False) -> None:
        if exclusive:  # always classic: an exclusive queue dies with its connection, there is nothing to replicate
            await self._ask("queue_declare", queue=name, exclusive=True)
            self._exclusive.add(name)
            return
        arguments: dict[str, object] = {"x-queue-type": self._queue_type}
        if self._queue_type == "quorum":
            arguments["x-delivery-limit"] = DELIVERY_LIMIT
        try:
            await self._ask("queue_declare", queue=name, durable=True, arguments=arguments)
        except _PreconditionFailed as error:
            raise BrokerError(
                f"queue {name} exists, but not as CANOPY_QUEUE_TYPE={self._queue_type} makes it: set the former type "
                f"again, or stop Canopy and delete its queues (rabbitmqctl delete_queue {name}). {error}"
            ) from error

    async def bind(self, queue: str, exchange: str, key: str) -> None:
        await self._ask("queue_bind", queue=queue, exchange=exchange, routing_key=key)

    async def unbind(self, queue: str, exchange: str, key: str) -> None:
        await self._ask("queue_unbind", queue=queue, exchange=exchange, routing_key=key)

    async def delete_queue(self, name: str) -> bool:
        if not self.deletes:
            return False
        try:
            await self._ask("queue_delete", queue=name, if_empty=True, if_unused=True)
        except NotFound:
            return True
        except _PreconditionFailed:  # not empty, or consumed
            return False
        return True

    async def delete_exchange(self, name: str, *, if_unused: bool = False) -> bool:
        try:
            await self._ask("exchange_delete", exchange=name, if_unused=if_unused)
        except NotFound:
            return True
        except _PreconditionFailed:
            return False
        return True

    async def depth(self, queue: str) -> int | None:
        try:
            answer = await self._ask("queue_declare", queue=queue, passive=True)
        except (NotFound, QueueLocked):
            return None
        return int(answer.method.message_count)

    async def exists(self, queue: str) -> bool:
        try:
            await self._ask("queue_declare", queue=queue, passive=True)
        except NotFound:
            return False
        except QueueLocked:
            return True
        return True

    async def consume(self, queue: str, handler: DeliveryHandler, *, prefetch: int) -> str:
        def delivered(_channel: Channel, method: Any, properties: pika.BasicProperties, body: bytes) -> None:
            self._acknowledger.delivered(method.delivery_tag)
            handler(
                Delivery(
                    body=body,
                    exchange=method.exchange,
                    routing_key=method.routing_key,
                    headers=properties.headers or {},
                    redelivered=method.redelivered,
                    settle=functools.partial(self._acknowledger.settle, method.delivery_tag),
                )
            )

        # consuming from a missing queue would close the consuming channel, so ask elsewhere first
        await self._ask("queue_declare", queue=queue, passive=True)
        async with self._one_consume:  # the limit applies to the consumers started after it
            await self._main.call("basic_qos", prefetch_count=prefetch)
            answer = await self._main.call("basic_consume", queue=queue, on_message_callback=delivered)
        return str(answer.method.consumer_tag)

    async def cancel(self, tag: str) -> None:
        if tag in self._main.raw.consumer_tags:
            await self._main.call("basic_cancel", consumer_tag=tag)

    def publish(
        self,
        exchange: str,
        key: str,
        body: bytes,
        *,
        persistent: bool = False,
        headers: Mapping[str, object] | None = None,
    ) -> asyncio.Future[bool]:
        return self._publisher.publish(exchange, key, body, persistent, headers)

    async def close(self) -> None:
        if self._checking is not None:
            self._checking.cancel()
            await asyncio.gather(self._checking, return_exceptions=True)
        gone = []
        for connection in self._connections:
            if connection.is_closed:
                continue
            closed = asyncio.get_running_loop().create_future()
            connection.add_on_close_callback(lambda *_, closed=closed: closed.done() or closed.set_result(None))
            gone.append(closed)
            if connection.is_open:
                connection.close()
        if gone:
            await asyncio.wait(gone, timeout=2)
        self._lost(ConnectionLost("the session was closed"))

    async def _ask(self, method: str, /, **kwargs: Any) -> Any:
        """A call that may be refused, on a channel of its own that is replaced when that happens."""
        async with self._one_question:
            if self._asking is None or self._asking.closed.done():
                self._asking = await _OpenChannel.open(self._connections[0], self.closed)
            return await self._asking.call(method, **kwargs)

    async def _check_exclusive(self) -> None:
        """A cluster that was divided may forget a queue and go on as if nothing were wrong for its owner: nothing would
        arrive any more, and nobody would say so (RabbitMQ 4.0 and 4.1 with Khepri).
        """
        while not self.closed.done():
            await asyncio.sleep(CHECK_SECONDS)
            for queue in tuple(self._exclusive):
                try:
                    await self._ask("queue_declare", queue=queue, passive=True)
                except (NotFound, QueueLocked):
                    self._lost(BrokerError(f"the broker has forgotten queue {queue}"))
                except BrokerError:
                    break  # it did not answer: asked again later

    def _alarm(self, on: bool) -> None:
        (self.blocking.set if on else self.blocking.clear)()
        (self.flowing.clear if on else self.flowing.set)()

    def _on_connection_closed(self, _connection: object, error: BaseException) -> None:
        self._lost(_translate(error))

    def _on_consumer_cancelled(self, frame: Any) -> None:
        self._lost(BrokerError(f"the broker ended consumer {frame.method.consumer_tag}: its queue is gone"))

    def _lost(self, reason: BrokerError) -> None:
        """Ends the session as a whole: half a session is harder to reason about than none."""
        if self.closed.done():
            return
        self.closed.set_result(reason)
        if hasattr(self, "_publisher"):
            self._publisher.fail(ConnectionLost(str(reason)))
        for connection in self._connections:
            if connection.is_open:
                connection.close()
