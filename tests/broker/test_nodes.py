"""Nodes as real processes on a real RabbitMQ."""

import asyncio
import signal
import time
import uuid
from collections.abc import Iterator

import pytest

from broker import snapshot
from broker.amqp import AmqpSession
from broker.client import Client
from broker.stream import Stream
from broker.tree import tree as describe
from broker.wire import (
    AnyFrame,
    ChatMessage,
    Delta,
    Drain,
    Failed,
    Finished,
    Job,
    RemoveGone,
    Resume,
    Sampling,
)
from cli.rabbitmq import Broker
from tests.realbroker import NodeProcess, echo_node, root
from topology import names

SECONDS = 30.0


@pytest.fixture
def tree(broker: Broker) -> Iterator[dict[str, NodeProcess]]:
    """root -> n1 -> n2"""
    with (
        root(broker) as top,
        echo_node(broker, "n1", "root", "--slots", "64") as n1,
        echo_node(broker, "n2", "n1", "--slots", "64") as n2,
    ):
        yield {"root": top, "n1": n1, "n2": n2}


async def ask(
    client: Client, text: str, max_tokens: int | None = None, model: str = "echo"
) -> Stream:
    return await client.submit(
        Job(
            request_id=uuid.uuid4().hex,
            model=model,
            reply_to="",
            created=time.time(),
            messages=(ChatMessage(role="user", content=text),),
            sampling=Sampling(max_tokens=max_tokens),
        )
    )


async def read(stream: Stream) -> tuple[str, list[AnyFrame]]:
    async with asyncio.timeout(SECONDS):
        frames = [frame async for frame in stream]
    return "".join(frame.text for frame in frames if isinstance(frame, Delta)), frames


async def until_children(client: Client, node: str, *children: str) -> None:
    async with asyncio.timeout(SECONDS):
        while node not in client.nodes() or client.nodes()[node].children != children:
            await client.changed()


async def test_a_thousand_requests_at_once_get_each_its_own_answer(
    tree: dict[str, NodeProcess], client: Client
) -> None:
    await until_children(client, "n1", "n2")

    async def one(number: int) -> tuple[str, list[AnyFrame]]:
        return await read(await ask(client, f"request {number} of many 🌳"))

    answers = await asyncio.gather(*(one(number) for number in range(1000)))
    assert [text for text, _ in answers] == [
        f"request {number} of many 🌳" for number in range(1000)
    ]
    assert all(isinstance(frames[-1], Finished) for _, frames in answers)


async def test_a_name_is_taken_once_and_a_parent_must_exist(
    tree: dict[str, NodeProcess], broker: Broker
) -> None:
    double = NodeProcess(broker, "n1", "--parent", "root", "--model", "echo", "--engine", "echo")
    assert double.wait_exit() == 3
    assert "node already registered: n1" in double.lines[-1]
    orphan = NodeProcess(broker, "n9", "--parent", "n8", "--model", "echo", "--engine", "echo")
    assert orphan.wait_exit() == 3
    assert "no node named 'n8'" in orphan.lines[-1]


async def test_a_node_of_another_model_ends_at_once(
    tree: dict[str, NodeProcess], broker: Broker
) -> None:
    joined = NodeProcess(broker, "x", "--parent", "root", "--model", "other", "--engine", "echo")
    assert joined.wait_exit() == 3
    assert (
        "root serves echo; this node serves other: start it with --model echo" in joined.lines[-1]
    )
    again = NodeProcess(
        broker, "x", "--parent", "n1", "--model", "other", "--engine", "echo", "--wait", "60"
    )
    assert again.wait_exit() == 3
    assert "n1 serves echo" in again.lines[-1]


async def test_a_node_added_while_running_gets_the_next_job(
    tree: dict[str, NodeProcess], broker: Broker, client: Client
) -> None:
    await until_children(client, "n1", "n2")
    with echo_node(broker, "n9", "root", "--slots", "1"):
        await until_children(client, "root", "n1", "n9")
        nodes = set()
        for _ in range(2):
            _, frames = await read(await ask(client, "hello"))
            nodes.add(frames[0].node)  # type: ignore[union-attr]
        assert nodes == {"n1", "n9"}
    await until_children(client, "root", "n1")
    assert "n9" not in client.nodes()


async def test_the_registration_ends_with_the_process(
    tree: dict[str, NodeProcess], broker: Broker, client: Client
) -> None:
    await until_children(client, "n1", "n2")
    tree["n2"].process.send_signal(signal.SIGKILL)
    tree["n2"].wait_exit()
    await until_children(client, "n1")
    async with asyncio.timeout(SECONDS):
        while (
            "n2"
            in (
                seen := await snapshot.take_snapshot(
                    broker.amqp["admin"], broker.management["admin"]
                )
            ).edges.registered
        ):
            await client.changed()
    shown = describe(seen.edges, seen.states, seen.depths, time.time())
    shown_names = [node["name"] for node in shown["nodes"]]  # other tests' trees may have left some
    assert {"root", "n1"} <= set(shown_names)
    assert "n2" not in shown_names
    with echo_node(broker, "n2", "n1"):
        await until_children(client, "n1", "n2")


async def test_what_a_killed_node_held_is_answered_by_others(
    tree: dict[str, NodeProcess], broker: Broker, client: Client
) -> None:
    with echo_node(broker, "n3", "n2", "--token-delay", "0.01", "--slots", "2") as n3:
        await until_children(client, "n2", "n3")
        for name in ("n1", "n2"):
            assert await client.control(name, Drain())
        # a draining node takes nothing, so the jobs wait at the root until its subtree is back
        streams = [await ask(client, f"job {number}", max_tokens=200) for number in range(6)]
        assert await client.control("n2", Resume())
        assert await client.control("n1", Resume())
        n3.process.send_signal(signal.SIGKILL)
        answers = [await read(stream) for stream in streams]
    for number, (text, frames) in enumerate(answers):
        assert isinstance(frames[-1], Finished)
        assert text.split() == ["job", str(number)] * 100


async def test_cancel_frees_the_slot(broker: Broker, client: Client) -> None:
    options = "--parent slow-root --model slow --engine echo --slots 1 --token-delay 0.02 --wait 20"
    with root(broker, "slow-root", "slow"), NodeProcess(broker, "slow", *options.split()):
        await until_children(client, "slow-root", "slow")

        async def submit(max_tokens: int) -> Stream:
            message = ChatMessage(role="user", content="word")
            sampling = Sampling(max_tokens=max_tokens)
            return await client.submit(
                Job(request_id=uuid.uuid4().hex, model="slow", reply_to="", created=time.time(),
                    messages=(message,), sampling=sampling)
            )  # fmt: skip

        endless = await submit(1_000_000)
        async for frame in endless:
            if isinstance(frame, Delta):
                break
        await endless.aclose()
        text, _ = await read(await submit(2))
        assert text == "word word"


async def test_a_slow_reader_costs_one_frame(tree: dict[str, NodeProcess], client: Client) -> None:
    stream = await ask(client, "word", max_tokens=5000)
    async with asyncio.timeout(SECONDS):
        while not stream.ended:
            await client.changed()
    assert len(stream._frames) <= 3
    text, _ = await read(stream)
    assert text == " ".join(["word"] * 5000)


async def test_the_jobs_of_a_tree_that_has_ended_end_when_it_is_removed(
    broker: Broker, client: Client
) -> None:
    """They waited in a queue that nobody reads, until their deadline."""
    with root(broker, "keeper", "kept"):
        with root(broker, "short", "short-lived"):
            stream = await ask(client, "word", model="short-lived")
        assert await client.control("keeper", RemoveGone(nodes=("short",)))
        _, frames = await read(stream)
    final = frames[-1]
    assert isinstance(final, Failed)
    assert (final.code, final.retryable) == ("no_node", True)
    assert "has ended" in final.message


async def test_a_root_removes_what_another_tree_left(broker: Broker, client: Client) -> None:
    """With the rights of a node's user; the API's has none on these queues."""
    session = await AmqpSession.open(broker.amqp["node"], "test")
    try:
        await session.declare_queue(names.node("ended"))
        await session.declare_exchange(names.node("ended"), "direct")
        with root(broker, "keeper", "kept"):
            assert await client.control("keeper", RemoveGone(nodes=("ended",)))
            async with asyncio.timeout(SECONDS):
                while await session.exists(names.node("ended")):  # noqa: ASYNC110 - no event tells
                    await asyncio.sleep(0.05)
    finally:
        await session.close()
