"""Operators and the jobs of real nodes on a real RabbitMQ, with the rights of our broker users."""

import asyncio
import time
import uuid
from collections.abc import AsyncIterator

import pytest

from broker.amqp import AmqpSession
from broker.announcements import Announcements, announce_once
from broker.client import Client
from broker.job_messages import (
    Answer,
    AnyQuestion,
    CancelJob,
    ChangeClass,
    FindJobs,
    JobReport,
    MoveJob,
    ShowPrompt,
)
from broker.stream import Stream
from broker.wire import ChatMessage, Failed, Job
from cli.rabbitmq import Broker
from tests.realbroker import echo_node, root

SECONDS = 20.0
ASKED = {"number": "", "reply_to": ""}
SLOTS = 2


@pytest.fixture
async def flooded(broker: Broker, client: Client) -> AsyncIterator[list[Stream]]:
    """root -> n1: two jobs run and four wait."""
    with (
        root(broker),
        echo_node(broker, "n1", "root", "--slots", str(SLOTS), "--token-delay", "0.05"),
    ):
        async with asyncio.timeout(SECONDS):
            while not {"root", "n1"} <= client.nodes().keys():
                await client.changed()
            streams = [await submit(client) for _ in range(6)]
            while client.nodes()["root"].held != 4 or client.nodes()["n1"].running != SLOTS:
                await client.changed()
        yield streams
        for stream in streams:
            await stream.aclose()


async def submit(client: Client) -> Stream:
    return await client.submit(
        Job(
            request_id=uuid.uuid4().hex,
            model="echo",
            reply_to="",
            created=time.time(),
            messages=(ChatMessage(role="user", content="word " * 2000),),
            user="ada",
        )
    )


async def act(client: Client, question: AnyQuestion) -> Answer:
    """What the node says that knows the job; within two seconds, as operators are promised."""
    async with asyncio.timeout(2):
        answers = await client.job_watch.ask(question, any_known=True)
    [known] = [answer for answer in answers if answer.known]
    return known


async def reports(client: Client) -> dict[str, JobReport]:
    answers = await client.job_watch.ask(FindJobs(**ASKED, limit=100))
    return {answer.node: answer.report for answer in answers if answer.report is not None}


async def waiting(client: Client) -> list[str]:
    return [job.request_id for job in (await reports(client))["root"].waiting]


async def test_lists_and_actions(client: Client, flooded: list[Stream]) -> None:
    ids = [stream.request_id for stream in flooded]
    seen = await reports(client)
    assert {job.request_id for job in seen["n1"].running} == set(ids[:SLOTS])
    assert seen["n1"].running[0].trail == ("root", "n1")
    assert await waiting(client) == ids[SLOTS:]

    await act(client, MoveJob(**ASKED, request_id=ids[5], before="class"))
    await act(client, ChangeClass(**ASKED, request_id=ids[2], job_class="batch"))
    assert await waiting(client) == [ids[5], ids[3], ids[4], ids[2]]
    shown = await act(client, ShowPrompt(**ASKED, request_id=ids[3]))
    assert shown.prompt is not None and shown.prompt.startswith("user:\nword word")

    for request_id in (ids[0], ids[3]):
        await act(client, CancelJob(**ASKED, request_id=request_id))
    for stream in (flooded[0], flooded[3]):
        async with asyncio.timeout(SECONDS):
            frames = [frame async for frame in stream]
        assert isinstance(frames[-1], Failed) and frames[-1].code == "cancelled"
    async with asyncio.timeout(SECONDS):
        while flooded[5].node != "n1":  # it was next, and took the slot
            await client.changed()
    assert await waiting(client) == [ids[4], ids[2]]


async def test_reports_come_while_somebody_watches(client: Client, flooded: list[Stream]) -> None:
    news = asyncio.Event()
    client.job_watch.listen(news.set)
    await client.job_watch.watch()
    async with asyncio.timeout(SECONDS):
        while not client.job_watch.complete():
            await news.wait()
            news.clear()
        await act(client, CancelJob(**ASKED, request_id=flooded[5].request_id))
        while True:
            latest = {each.report.node: each.report for each in client.job_watch.reports()}
            if latest["root"].waiting_count == 3:
                break
            news.clear()
            await news.wait()
    await client.job_watch.unwatch()
    assert client.job_watch.reports() == []


async def test_a_changed_setting_reaches_the_other_processes(
    broker: Broker, client: Client
) -> None:
    heard = asyncio.Event()
    client.announcements.listen("intake", heard.set)
    session = await AmqpSession.open(broker.amqp["api"], "another process")
    other = Announcements("another")
    try:
        await other.open(session)
        other.announce("intake")
        async with asyncio.timeout(SECONDS):
            await heard.wait()
        heard.clear()
        assert await announce_once(session, "intake")
        async with asyncio.timeout(SECONDS):
            await heard.wait()
    finally:
        await session.close()
