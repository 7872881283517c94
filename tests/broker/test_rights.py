"""What a stolen node's credential can do at the broker: docs/joining.md has the table.

Every attack is tried with a client library of its own, past all our code.
"""

import asyncio
import contextlib
import gc
import time
import urllib.error
import urllib.request
import uuid
from base64 import b64encode
from collections.abc import Callable, Iterator
from urllib.parse import urlsplit

import pika
import pika.exceptions
import pytest
from pika.adapters.blocking_connection import BlockingChannel, BlockingConnection

from broker import joined_users
from broker.amqp import AmqpSession
from broker.client import Client
from broker.encoding import encode
from broker.errors import NameTaken
from broker.job_messages import SettingChanged
from broker.management import ManagementApi
from broker.session import Delivery
from broker.wire import (
    NO_RUN,
    Cancel,
    Capacity,
    ChatMessage,
    Delta,
    Drain,
    Failed,
    Finished,
    Frames,
    Job,
    ResumeRequest,
    Sampling,
    Wire,
)
from cli.rabbitmq import Broker
from tests.realbroker import NodeProcess, echo_node, root
from topology import names

SECONDS = 30.0
MODEL = "echo"
PASSWORD = "known-to-the-thief"
NODE, INBOX = names.node("room2"), names.inbox("room2")

# pika does not close the socket of a connection that the broker refuses
LEAVES_SOCKET = "ignore::pytest.PytestUnraisableExceptionWarning"

Attack = Callable[[BlockingChannel], object]


@pytest.fixture(scope="module")
def joined_url(broker: Broker) -> Iterator[str]:
    """The tree root -> n1, and the address with room2's credential."""
    api = ManagementApi(broker.management["admin"])
    with root(broker), echo_node(broker, "n1", "root", "--slots", "64", "--token-delay", "0.05"):
        asyncio.run(joined_users.create(api, "room2", MODEL, PASSWORD, "/"))
        place = urlsplit(broker.amqp["admin"]).netloc.rpartition("@")[2]
        yield f"amqp://{names.joined_user('room2')}:{PASSWORD}@{place}/%2F"
        asyncio.run(joined_users.delete(api, "room2"))


@pytest.fixture(scope="module")
def room2(broker: Broker, joined_url: str) -> Iterator[NodeProcess]:
    """The node itself, whose credential is stolen while it serves."""
    fixed = ("--parent", "root", "--model", MODEL, "--engine", "echo", "--slots", "2")
    env = {"CANOPY_AMQP_URL": joined_url}
    with NodeProcess(broker, "room2", *fixed, "--token-delay", "0.05", env=env) as node:
        yield node


@pytest.fixture
def thief(joined_url: str, room2: NodeProcess) -> Iterator[BlockingChannel]:
    connection = BlockingConnection(pika.URLParameters(joined_url))
    channel = connection.channel()
    channel.confirm_delivery()
    yield channel
    if connection.is_open:
        connection.close()


def bind(queue: str, exchange: str, key: str = "#") -> Attack:
    return lambda channel: channel.queue_bind(queue, exchange, key)


def get(queue: str) -> Attack:
    return lambda channel: channel.basic_get(queue)


def publish(exchange: str, key: str, body: bytes = b"{}", **properties: object) -> Attack:
    return lambda channel: channel.basic_publish(
        exchange, key, body, pika.BasicProperties(**properties), mandatory=True
    )


OTHER_TREE = names.joined_key(names.inbox("root"), "another model")
REFUSED: dict[str, Attack] = {
    "every prompt: its queue at the entrance": bind(NODE, names.JOBS_EXCHANGE, MODEL),
    "every prompt: its inbox at the entrance": bind(INBOX, names.JOBS_EXCHANGE, MODEL),
    "every prompt: its inbox below the root": bind(INBOX, names.node("root"), "n1"),
    "every event": bind(INBOX, names.EVENTS_EXCHANGE),
    "what other joined nodes send": bind(INBOX, names.JOINED_EXCHANGE),
    "the broker's own events": bind(INBOX, "amq.rabbitmq.event"),
    "another's queue in its exchange": bind(names.node("n1"), names.node("root"), "room2"),
    "an exchange of its own to the entrance": lambda channel: channel.exchange_bind(
        names.JOBS_EXCHANGE, names.CONTROL_EXCHANGE, ""
    ),
    "the root's jobs": get(names.node("root")),
    "another node's jobs": get(names.node("n1")),
    "dead letters": get(names.DEAD_QUEUE),
    "another node's inbox": get(names.inbox("n1")),
    "another node's jobs, thrown away": lambda channel: channel.queue_purge(names.node("n1")),
    "a queue of any name": lambda channel: channel.queue_declare("loot"),
    "a queue with one of our names": lambda channel: channel.queue_declare(names.watch("loot")),
    "the inbox of a node that is away": lambda channel: channel.queue_declare(names.inbox("n9")),
    "its queue with other arguments": lambda channel: channel.queue_declare(
        NODE, durable=True, arguments={"x-dead-letter-exchange": names.JOINED_EXCHANGE}
    ),
    "an exchange": lambda channel: channel.exchange_declare(names.node("room2"), "fanout"),
    "no more entrance": lambda channel: channel.exchange_delete(names.JOBS_EXCHANGE),
    "no more root": lambda channel: channel.queue_delete(names.node("root")),
    "no more dead letters": lambda channel: channel.queue_delete(names.DEAD_QUEUE),
    "jobs of its own": publish(names.JOBS_EXCHANGE, MODEL),
    "any queue": publish("", names.node("n1")),
    "any reader": publish("", names.reply("api")),
    "commands to all nodes": publish(names.CONTROL_EXCHANGE, ""),
    "jobs for another node": publish(names.node("root"), "n1"),
    "the broker's events, forged": publish("amq.rabbitmq.event", "queue.deleted"),
    "another node's state": publish(names.EVENTS_EXCHANGE, names.state_key("n1")),
    "another joined node's state": publish(
        names.EVENTS_EXCHANGE, names.joined_state_key("room3", MODEL)
    ),
    "a node of another model": publish(
        names.EVENTS_EXCHANGE, names.joined_state_key("room2", "another model")
    ),
    "another node's list of jobs": publish(names.EVENTS_EXCHANGE, names.jobs_key("n1")),
    "a changed setting": publish(names.EVENTS_EXCHANGE, names.setting_key("models")),
    "a host": publish(names.EVENTS_EXCHANGE, names.agent_key("host")),
    "the inbox of another model's root": publish(names.JOINED_EXCHANGE, OTHER_TREE),
    "another queue's key": publish(names.JOINED_EXCHANGE, names.watch("api")),
    "another's name": publish(
        names.JOINED_EXCHANGE, names.DEAD_QUEUE, user_id=names.joined_user("n1")
    ),
}


@pytest.mark.parametrize("attack", REFUSED)
def test_the_broker_refuses(thief: BlockingChannel, attack: str) -> None:
    with pytest.raises(pika.exceptions.ChannelClosedByBroker) as refusal:
        REFUSED[attack](thief)
    assert refusal.value.reply_code == (406 if attack == "another's name" else 403)


@pytest.mark.filterwarnings(LEAVES_SOCKET)
def test_more_connections_and_channels_than_a_node_needs(
    thief: BlockingChannel, joined_url: str
) -> None:
    """The node has two connections, and the thief one."""
    connections = [BlockingConnection(pika.URLParameters(joined_url))]
    try:
        with pytest.raises(pika.exceptions.AMQPConnectionError, match="connection limit"):
            BlockingConnection(pika.URLParameters(joined_url))
        with pytest.raises(pika.exceptions.ConnectionClosedByBroker, match="channel"):
            for _ in range(joined_users.MAX_CHANNELS):
                connections[0].channel()
    finally:
        for connection in connections:
            if connection.is_open:
                connection.close()
        gc.collect()


def test_the_management_api(broker: Broker) -> None:
    url = broker.management["admin"]
    place = urlsplit(url).netloc.rpartition("@")[2]
    login = b64encode(f"{names.joined_user('room2')}:{PASSWORD}".encode()).decode()
    for path in ("overview", "queues", "connections", "definitions"):
        request = urllib.request.Request(
            f"http://{place}/api/{path}", headers={"Authorization": f"Basic {login}"}
        )
        with pytest.raises(urllib.error.HTTPError) as refusal:
            urllib.request.urlopen(request, timeout=SECONDS)
        assert refusal.value.code == 401
        refusal.value.close()


# ---- what the broker lets pass, and the receivers do not believe


def send(channel: BlockingChannel, queue: str, message: Wire, **properties: object) -> None:
    user = names.joined_user("room2")
    properties = {"user_id": user, **properties}
    publish(names.JOINED_EXCHANGE, names.joined_key(queue, MODEL), encode(message), **properties)(
        channel
    )


def job(request_id: str, **fields: object) -> Job:
    return Job(
        request_id=request_id,
        model=MODEL,
        created=time.time(),
        messages=(ChatMessage(role="user", content="word " * 40),),
        sampling=Sampling(max_tokens=40),
        **{"reply_to": "", **fields},
    )


async def text_of(client: Client, victim: Job, attack: Callable[[str], None]) -> str:
    """The victim's answer, with the attack in the middle of it."""
    stream = await client.submit(victim)
    text, attacked = "", False
    async with asyncio.timeout(SECONDS):
        async for frame in stream:
            if isinstance(frame, Delta):
                text += frame.text
                if not attacked:
                    attack(client._reply_queue)
                    attacked = True
            assert not isinstance(frame, Failed), frame
    assert isinstance(stream.end, Finished)
    return text


FORGED = [
    lambda who: Delta(request_id=who, seq=2, text="forged"),
    lambda who: Delta(request_id=who, seq=2, text="forged", token="0" * 32),
    lambda who: Failed(request_id=who, seq=NO_RUN, code="internal", message="forged"),
    lambda who: Finished(request_id=who, seq=NO_RUN, reason="stop", token="0" * 32),
    lambda who: ResumeRequest(
        request_id=who, seq=NO_RUN, node="room2", incarnation="x", number=1, token="0" * 32
    ),
]


async def test_answers_to_another_nodes_job(client: Client, thief: BlockingChannel) -> None:
    who = uuid.uuid4().hex

    def attack(queue: str) -> None:
        for forged in FORGED:
            send(thief, queue, Frames(frames=(forged(who),)))

    assert await text_of(client, job(who), attack) == ("word " * 40).strip()
    assert client.refused_frames >= len(FORGED)


async def test_commands_to_another_node(client: Client, thief: BlockingChannel) -> None:
    who = uuid.uuid4().hex
    capacity = Capacity(node="n1", slots=0, free=0, received=0, finished=0, accepting=False)

    def attack(_: str) -> None:
        for message in (Drain(), Cancel(request_id=who), capacity):
            for node in ("root", "n1"):
                send(thief, names.inbox(node), message)
                send(thief, names.inbox(node), message, user_id=None)

    assert await text_of(client, job(who), attack) == ("word " * 40).strip()
    async with asyncio.timeout(SECONDS):
        while "may not send" not in client.nodes()["n1"].warning:
            await client.changed()
    assert client.nodes()["n1"].status in ("idle", "busy")


async def test_an_invented_job_for_another_reader(client: Client, thief: BlockingChannel) -> None:
    who = uuid.uuid4().hex

    def attack(queue: str) -> None:
        for token in ("", "0" * 32):
            forged = job(who, reply_to=queue, reply_token=token, user="ada", attempt=9, work=1e9)
            send(thief, names.node("root"), forged)
            send(thief, names.node("root"), forged, user_id=None)

    assert await text_of(client, job(who), attack) == ("word " * 40).strip()


async def test_further_keys_around_the_rights(
    broker: Broker, client: Client, thief: BlockingChannel
) -> None:
    """RabbitMQ 3.10 checks the right to a message's key, and not to those in CC and BCC; 4 does."""
    session = await AmqpSession.open(broker.amqp["api"], "settings")
    heard: asyncio.Queue[Delivery] = asyncio.Queue()
    queue = names.watch(uuid.uuid4().hex)
    try:
        await session.declare_queue(queue, exclusive=True)
        await session.bind(queue, names.EVENTS_EXCHANGE, names.setting_key("*"))
        await session.consume(queue, heard.put_nowait, prefetch=10)
        message = encode(SettingChanged(process="thief", setting="models"))
        key = names.setting_key("models")
        for header in ("CC", "BCC"):
            own = names.joined_state_key("room2", MODEL)
            channel = thief.connection.channel()
            channel.confirm_delivery()
            with contextlib.suppress(pika.exceptions.ChannelClosedByBroker):
                publish(names.EVENTS_EXCHANGE, own, message, headers={header: [key]})(channel)
        honest = encode(SettingChanged(process="api", setting="models"))
        assert await session.publish(names.EVENTS_EXCHANGE, key, honest)
        async with asyncio.timeout(SECONDS):
            assert (await heard.get()).body == honest
        assert heard.empty()
    finally:
        await session.close()


async def test_a_binding_between_exchanges_carries_nothing(
    broker: Broker, client: Client, thief: BlockingChannel
) -> None:
    """Its inbox is bound to canopy.control, so that it may bind what it may write to as well."""
    for exchange in (names.EVENTS_EXCHANGE, names.JOINED_EXCHANGE):
        thief.exchange_bind(exchange, names.CONTROL_EXCHANGE, "")
    try:
        who = uuid.uuid4().hex
        assert await text_of(client, job(who), lambda _: None) == ("word " * 40).strip()
        assert client.nodes()["n1"].status in ("idle", "busy")
    finally:
        for exchange in (names.EVENTS_EXCHANGE, names.JOINED_EXCHANGE):
            thief.exchange_unbind(exchange, names.CONTROL_EXCHANGE, "")


async def test_a_token_that_is_valid_is_not_replaced(broker: Broker, joined_url: str) -> None:
    """As by another instance on this broker, or one that has lost its list of tokens."""
    api = ManagementApi(broker.management["admin"])
    with pytest.raises(NameTaken):
        await joined_users.create(api, "room2", MODEL, "another password", "/")
    session = await AmqpSession.open(joined_url, "still valid")
    await session.close()


@pytest.mark.filterwarnings(LEAVES_SOCKET)
async def test_nothing_that_it_declared_outlasts_its_token(broker: Broker, joined_url: str) -> None:
    api = ManagementApi(broker.management["admin"])
    inbox = names.inbox("room4")
    for kind in ("queues", "exchanges"):
        await joined_users.create(api, "room4", MODEL, PASSWORD, "/")
        url = joined_url.replace(names.joined_user("room2"), names.joined_user("room4"))
        await asyncio.to_thread(_declare_lasting, url, kind, inbox)
        assert inbox in [each["name"] for each in await api.listing(kind)]
        await joined_users.delete(api, "room4")
        assert inbox not in [each["name"] for each in await api.listing(kind)]
    gc.collect()


def _declare_lasting(url: str, kind: str, name: str) -> None:
    with BlockingConnection(pika.URLParameters(url)) as connection:
        channel = connection.channel()
        if kind == "queues":
            channel.queue_declare(name, durable=True)
            channel.queue_bind(name, names.CONTROL_EXCHANGE)
        else:
            channel.exchange_declare(name, "fanout", durable=True)


@pytest.mark.filterwarnings(LEAVES_SOCKET)
async def test_revoked_at_once(broker: Broker, joined_url: str) -> None:
    api = ManagementApi(broker.management["admin"])
    await joined_users.create(api, "room3", MODEL, PASSWORD, "/")
    url = joined_url.replace(names.joined_user("room2"), names.joined_user("room3"))
    connection = await asyncio.to_thread(BlockingConnection, pika.URLParameters(url))
    await joined_users.delete(api, "room3")
    with pytest.raises(pika.exceptions.ConnectionClosedByBroker):
        async with asyncio.timeout(SECONDS):
            while True:
                await asyncio.to_thread(connection.process_data_events, 0.1)
    with pytest.raises(pika.exceptions.ProbableAuthenticationError):
        await asyncio.to_thread(BlockingConnection, pika.URLParameters(url))
    gc.collect()
