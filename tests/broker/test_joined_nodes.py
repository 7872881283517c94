"""Joined nodes as real processes on a real RabbitMQ, with the rights that a token gives."""

import asyncio
import contextlib
import time
import uuid
from collections.abc import AsyncIterator, Callable, Iterator
from pathlib import Path
from urllib.parse import urlsplit

import pytest
import pytest_asyncio

from broker import joined_users
from broker.amqp import AmqpSession
from broker.client import Client
from broker.management import ManagementApi
from broker.stream import Stream
from broker.wire import ChatMessage, Delta, Job, Sampling
from cli import node_tokens, token_watch
from cli.credentials import password_hash, rights
from cli.home import Home
from cli.node_tokens import TokenRecord
from cli.rabbitmq import Broker
from tests.realbroker import NodeProcess, echo_node, root
from topology import names
from topology.prefix import Prefix

SECONDS = 30.0
PASSWORD = "of-the-token"
TEXT = "word " * 60


def url(broker: Broker, user: str) -> str:
    place = urlsplit(broker.amqp["admin"]).netloc.rpartition("@")[2]
    return f"amqp://{user}:{PASSWORD}@{place}/%2F"


def joined(broker: Broker, name: str, parent: str, *options: str) -> NodeProcess:
    fixed = ("--parent", parent, "--model", "echo", "--engine", "echo", "--slots", "2")
    env = {"CANOPY_AMQP_URL": url(broker, names.joined_user(name))}
    return NodeProcess(broker, name, *fixed, "--token-delay", "0.05", *options, env=env)


@pytest.fixture
def top(broker: Broker) -> Iterator[NodeProcess]:
    with root(broker) as process:
        yield process


@pytest_asyncio.fixture
async def token(broker: Broker) -> AsyncIterator[ManagementApi]:
    """The user of room2."""
    api = ManagementApi(broker.management["admin"])
    await joined_users.create(api, "room2", "echo", PASSWORD, "/")
    yield api
    await joined_users.delete(api, "room2")


async def ask(client: Client) -> Stream:
    return await client.submit(
        Job(
            request_id=uuid.uuid4().hex,
            model="echo",
            reply_to="",
            created=time.time(),
            messages=(ChatMessage(role="user", content=TEXT),),
            sampling=Sampling(max_tokens=60),
        )
    )


async def read(stream: Stream, when_begun: Callable[[], object] = lambda: None) -> str:
    text = ""
    async with asyncio.timeout(SECONDS):
        async for frame in stream:
            if isinstance(frame, Delta):
                if not text:
                    when_begun()
                text += frame.text
    return text


async def until(client: Client, condition: Callable[[], object]) -> None:
    async with asyncio.timeout(SECONDS):
        while not condition():
            await client.changed()


def node(client: Client, name: str, field: str) -> object:
    return getattr(client.nodes().get(name), field, None)


async def test_it_serves_and_leaves_without_a_trace(
    client: Client, top: NodeProcess, token: ManagementApi, broker: Broker
) -> None:
    with joined(broker, "room2", "root"):
        await until(client, lambda: node(client, "root", "children") == ("room2",))
        stream = await ask(client)
        assert await read(stream) == TEXT.strip()
        assert stream.node == "room2"
        assert client.refused_frames == 0
    listed = await token.listing("queues")
    assert names.node("room2") not in [queue["name"] for queue in listed]


async def test_a_job_goes_on_when_its_token_is_revoked(
    client: Client, top: NodeProcess, token: ManagementApi, broker: Broker
) -> None:
    room2 = joined(broker, "room2", "root").wait_ready()
    await until(client, lambda: node(client, "root", "children") == ("room2",))
    stream = await ask(client)
    with contextlib.ExitStack() as others:
        revoking: list[asyncio.Task[None]] = []

        def revoke() -> None:
            revoking.append(asyncio.create_task(joined_users.delete(token, "room2")))
            others.enter_context(echo_node(broker, "n1", "root"))

        assert await read(stream, revoke) == TEXT.strip()
        await asyncio.gather(*revoking)
        assert stream.node == "n1"
    assert await asyncio.to_thread(room2.wait_exit) == 1
    assert "node room2: its token was revoked" in room2.lines[-1]


async def test_it_moves_when_its_parent_dies_and_its_answer_goes_on(
    client: Client, top: NodeProcess, token: ManagementApi, broker: Broker
) -> None:
    slow = ("--slots", "1", "--token-delay", "0.05")
    with echo_node(broker, "n1", "root", *slow) as n1, joined(broker, "room2", "n1"):
        await until(client, lambda: node(client, "n1", "children") == ("room2",))
        streams = [await ask(client) for _ in range(3)]
        await until(client, lambda: node(client, "room2", "running") == 2)
        reading = [asyncio.create_task(read(stream)) for stream in streams]
        n1.process.kill()
        assert await asyncio.gather(*reading) == [TEXT.strip()] * 3
        await until(client, lambda: node(client, "room2", "parent") == "root")
        assert await read(await ask(client)) == TEXT.strip()


async def test_its_jobs_go_on_when_it_dies(
    client: Client, top: NodeProcess, token: ManagementApi, broker: Broker
) -> None:
    with joined(broker, "room2", "root") as room2:
        await until(client, lambda: node(client, "root", "children") == ("room2",))
        streams = [await ask(client) for _ in range(4)]  # two run there, two wait
        await until(client, lambda: node(client, "room2", "running") == 2)
        room2.process.kill()
        with echo_node(broker, "n1", "root"):
            texts = await asyncio.gather(*map(read, streams))
    assert texts == [TEXT.strip()] * 4


async def test_another_engine_is_refused_by_name(
    client: Client, token: ManagementApi, broker: Broker
) -> None:
    of_models = ("--engine", "none", "--model", "echo", "--tree-engine", "transformers")
    with NodeProcess(broker, "root", *of_models, "--wait", "20"):
        for process in (
            joined(broker, "room2", "root"),
            echo_node(broker, "n1", "root", "--wait", "0"),
        ):
            assert await asyncio.to_thread(process.wait_exit) in (1, 3)
            assert (
                "root is in a tree of engine transformers; this node has echo"
                in (process.lines[-1])
            )


async def test_a_token_for_another_node_or_tree(
    client: Client, top: NodeProcess, token: ManagementApi, broker: Broker
) -> None:
    env = {"CANOPY_AMQP_URL": url(broker, names.joined_user("room2"))}
    fixed = ("--parent", "root", "--engine", "echo")
    for options, says in (
        (("n9", *fixed, "--model", "echo"), "this token is for node 'room2', not 'n9'"),
        (("room2", *fixed, "--model", "other"), "for the tree of another model than 'other'"),
    ):
        process = NodeProcess(broker, *options, env=env)
        assert await asyncio.to_thread(process.wait_exit) != 0
        assert says in process.lines[-1]


async def test_an_expired_token_ends_and_a_used_one_says_so(
    client: Client, top: NodeProcess, token: ManagementApi, broker: Broker, tmp_path: Path
) -> None:
    home = Home(tmp_path / "home")
    said: list[str] = []
    record = TokenRecord(name="room2", model="echo", engine="echo", parent="root", created=0)
    with node_tokens.changing(home) as records:
        records["room2"] = record
    room2 = joined(broker, "room2", "root").wait_ready()
    async with asyncio.timeout(SECONDS):  # the broker's list of connections comes late
        while node_tokens.read(home)["room2"].last_host != "127.0.0.1":
            await token_watch.look(home, token, said.append)
            await asyncio.sleep(0.2)
    with node_tokens.changing(home) as records:
        records["room2"] = TokenRecord(
            name="room2", model="echo", engine="echo", parent="root", created=0, expires=1.0
        )
    # A command may hold the list for seconds; the launcher's event loop goes on meanwhile.
    with node_tokens.changing(home):
        looking = asyncio.create_task(token_watch.look(home, token, said.append))
        await asyncio.sleep(0.2)
        assert not looking.done()
    await looking
    assert said == ["the token of node room2 has expired"]
    assert node_tokens.read(home) == {}
    assert await asyncio.to_thread(room2.wait_exit) == 1


async def test_at_the_start_of_an_instance_expired_tokens_end_first(
    token: ManagementApi, broker: Broker, tmp_path: Path
) -> None:
    home = Home(tmp_path / "home")
    with node_tokens.changing(home) as records:
        records["room2"] = TokenRecord(
            name="room2", model="echo", engine="echo", parent="root", created=0, expires=1.0
        )
    said: list[str] = []
    await token_watch.end_expired(home, broker.management["admin"], said.append)
    assert said == ["the token of node room2 has expired"]
    assert "room2" not in await joined_users.existing(token)


async def test_after_a_restore_the_tokens_of_the_list_are_valid_and_no_others(
    token: ManagementApi, broker: Broker, tmp_path: Path
) -> None:
    home = Home(tmp_path / "home")

    def record(name: str, hashed: str) -> TokenRecord:
        return TokenRecord(
            name=name, model="echo", engine="echo", parent="root", created=0, password_hash=hashed
        )

    with node_tokens.changing(home) as records:
        records["room3"] = record("room3", password_hash(PASSWORD))
        records["room4"] = record("room4", "")
    said: list[str] = []
    await token_watch.reconcile(home, token, "/", said.append)
    await joined_users.create(token, "room2", "echo", PASSWORD, "/")
    try:
        assert await joined_users.existing(token) == {"room2", "room3"}
        for user in ("room2", "room3"):
            session = await AmqpSession.open(url(broker, names.joined_user(user)), "test")
            await session.close()
    finally:
        await joined_users.delete(token, "room3")
    assert [line.split(":")[0] for line in said] == [
        "node room2 is no longer let in",
        "the token of node room3 is valid again",
        "the broker does not know the token of node room4 any more",
    ]


async def test_without_the_rights_for_joined_nodes_all_else_goes_on(
    broker: Broker, token: ManagementApi
) -> None:
    """A broker that the former release has started knows nothing of them."""
    for user in ("api", "node"):
        former = {
            kind: pattern.replace("|joined", "") for kind, pattern in rights(user, Prefix()).items()
        }
        await token.put(f"users/former-{user}", {"password": PASSWORD, "tags": ""})
        await token.put(f"permissions/%2F/former-{user}", former)
    client = Client(url(broker, "former-api"))
    env = {"CANOPY_AMQP_URL": url(broker, "former-node")}
    of_root = ("--engine", "none", "--model", "echo", "--wait", "20")
    of_node = ("--parent", "root", "--engine", "echo", "--model", "echo", "--wait", "20")
    with (
        NodeProcess(broker, "root", *of_root, env=env),
        NodeProcess(broker, "n1", *of_node, env=env),
    ):
        await client.start()
        try:
            await until(client, lambda: client.connected and node(client, "root", "children"))
            assert await read(await ask(client)) == TEXT.strip()
        finally:
            await client.stop()
            for user in ("api", "node"):
                await token.delete(f"users/former-{user}")
