"""Messages of strangers in every queue: buried with the reason or ignored, and jobs go on."""

import json
from collections.abc import AsyncIterator

import pytest_asyncio

from broker.amqp import AmqpSession
from broker.client import Client
from broker.encoding import encode
from broker.session import Session
from broker.wire import Frames, Ping
from cli.rabbitmq import Broker
from tests.faults.conftest import Grow, Open
from tests.faults.dead import letters
from tests.faults.nodes import Tree
from topology import names

# undecodable, wrongly typed, foreign
NO_JOBS = (
    b"",
    b"not json",
    b"\xff\xfe\x00\x01",
    b"null",
    b"[]",
    b'{"request_id": 5}',
    json.dumps(
        {"request_id": "r", "model": "echo", "reply_to": "x", "created": "yesterday"}
    ).encode(),
    encode(Frames(frames=())),
    encode(Ping()),
    b"x" * 1_000_000,
)
# nor a control message, frames or a node's state
NOTHING_OF_OURS = (
    *NO_JOBS[:6],
    b'{"kind": "explode"}',
    b'{"kind": "attach"}',
    b'{"kind": "capacity", "node": "n9"}',
    b'{"frames": [{"kind": "explode", "request_id": "r"}]}',
    b'{"frames": [{"kind": "delta", "request_id": "r", "attempt": 1, "seq": 0, "text": "stray"}]}',
)
IGNORED = "message ignored"
SENDERS = 3  # at most, as far as such messages name one: a line each is logged


@pytest_asyncio.fixture
async def stranger(broker: Broker) -> AsyncIterator[Session]:
    """Somebody who may write anywhere."""
    session = await AmqpSession.open(broker.amqp["admin"], "stranger")
    yield session
    await session.close()


async def test_what_is_no_job_is_buried_once_with_the_reason(
    stranger: Session, broker: Broker, grow: Grow, account: Open
) -> None:
    tree: Tree = await grow()
    ledger = account("foreign messages", "node queue, root queue")
    before = len(await letters(broker, lambda letter: True, 0))
    ways = {"n2": ("", names.node("n2")), "root": (names.JOBS_EXCHANGE, "echo")}
    await ledger.submit(20, tokens=30)
    for exchange, key in ways.values():
        for body in NO_JOBS:
            assert await stranger.publish(
                exchange, key, body, headers={"x-death": 7, "of": "a stranger"}
            )
    await ledger.submit(20, tokens=10)
    assert await ledger.settled() == []
    found = await letters(broker, lambda letter: letter.job is None, 2 * len(NO_JOBS))
    buried = {node: [letter for letter in found if letter.node == node] for node in ways}
    for node in ways:
        assert sorted(letter.delivery.body for letter in buried[node]) == sorted(NO_JOBS)
        assert all(letter.reason.startswith("undecodable: ") for letter in buried[node])
        assert all(isinstance(letter.at, float) for letter in buried[node])
    assert len(await letters(broker, lambda letter: True, 0)) == before + 2 * len(NO_JOBS)
    assert all(process.process.poll() is None for process in tree.processes.values())


async def test_a_job_that_nobody_reads_ends(
    stranger: Session, broker: Broker, grow: Grow, account: Open
) -> None:
    tree: Tree = await grow(count=1, slots=2)
    ledger = account("foreign messages", "jobs of strangers, in the root's queue")
    for number, reply_to in enumerate(("nowhere", "", names.reply("of-a-dead-process"))):
        job = {
            "request_id": str(number),
            "model": "echo",
            "reply_to": reply_to,
            "created": 0.0,
            "prompt": "endless",
        }
        body = json.dumps({**job, "sampling": {"max_tokens": 1_000_000}}).encode()
        assert await stranger.publish(names.JOBS_EXCHANGE, "echo", body)
    await letters(broker, lambda letter: "is no reply queue" in letter.reason, 2)
    await tree.until(lambda nodes: nodes["n1"].received >= 1)
    await ledger.submit(5, tokens=10)
    assert await ledger.settled() == []
    assert tree.processes["n1"].process.poll() is None


async def test_what_is_no_control_message_no_frame_and_no_state_is_ignored(
    stranger: Session, client: Client, grow: Grow, account: Open
) -> None:
    tree: Tree = await grow()
    ledger = account("foreign messages", "inbox, control, reply queue, events")
    ways = [
        ("", names.inbox("n2")),
        ("", names.inbox("root")),
        (names.CONTROL_EXCHANGE, ""),
        ("", client._reply_queue),
        (names.EVENTS_EXCHANGE, names.state_key("n2")),
    ]
    await ledger.submit(20, tokens=30)
    for body in NOTHING_OF_OURS:
        for exchange, key in ways:
            assert await stranger.publish(exchange, key, body)
    await ledger.submit(20, tokens=10)
    assert await ledger.settled() == []
    for name in ("n2", "root", "n3"):
        await tree.until(lambda nodes, name=name: "was ignored" in nodes[name].warning)
        assert 1 <= len(tree.said(name, IGNORED)) <= SENDERS
    assert client._sessions == 1
    await tree.whole()
