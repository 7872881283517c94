"""`bench fair`: the flood, the light user, the quality of estimates, and the verdicts."""

import asyncio
import contextlib
import random
from collections.abc import AsyncIterator

import pytest

from bench import streaming
from bench.errors import RequestFailed
from bench.fair import command
from bench.fair.scenarios import BesideFlood, LightResult, Settings, SharesResult, TwoFloods
from bench.fair.users import Flood, ask_at_intervals, estimate_row
from bench.report import Report
from bench.streaming import StreamClient, WaitNotice

SETTINGS = Settings(10, 100, 1)
ANSWER = b'HTTP/1.1 200 OK\r\n\r\ndata: {"choices": "word~"}\n\ndata: [DONE]\n\n'


@contextlib.asynccontextmanager
async def server(answer: bytes) -> AsyncIterator[int]:
    async def on_client(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with contextlib.suppress(ConnectionError, asyncio.IncompleteReadError):
            await reader.readuntil(b"\r\n\r\n")
            writer.write(answer)
            await writer.drain()
        writer.close()

    async with await asyncio.start_server(on_client, "127.0.0.1", 0) as listening:
        yield listening.sockets[0].getsockname()[1]


async def test_a_flood_is_refilled_and_its_tokens_are_counted() -> None:
    async with server(ANSWER) as port:
        count = 0
        often = asyncio.Event()

        def request() -> bytes:
            nonlocal count
            count += 1
            if count == 25:
                often.set()
            return streaming.chat(port, "key", "echo", 1)

        flood = Flood(port, 5, request)
        async with flood.flowing(), asyncio.timeout(10):
            await flood.admitted.wait()
            await often.wait()
    assert flood.tokens_within(0, float("inf")) >= 20
    assert flood.begun_within(0, float("inf")) >= 20
    assert flood.tokens_within(0, flood.clients[0].timeline.sent) == 0


async def test_a_flood_that_is_refused_says_so() -> None:
    async with server(b"HTTP/1.1 503 Service Unavailable\r\n\r\n") as port:
        flood = Flood(port, 3, lambda: streaming.chat(port, "key", "echo", 1))
        with pytest.raises(RequestFailed, match="503"):
            async with flood.flowing(), asyncio.timeout(10):
                await flood.admitted.wait()


async def test_a_light_user_asks_as_often_as_planned_and_learns_of_refusals() -> None:
    request, rng = streaming.chat(1, "key", "echo", 1), random.Random(1)
    async with server(ANSWER) as port:
        clients = await ask_at_intervals(port, request, (0.0, 0.0), rng, lambda sent: sent < 4)
    assert [client.timeline.tokens for client in clients] == [1, 1, 1, 1]
    async with server(b"HTTP/1.1 429 Too Many Requests\r\n\r\n") as port:
        with pytest.raises(RequestFailed, match="429"):
            await ask_at_intervals(port, request, (0.0, 0.0), rng, lambda sent: sent < 1)


def client(first: float | None, *notices: WaitNotice) -> StreamClient:
    made = StreamClient(b"", lambda _: None, lambda _: None)
    made.notices = list(notices)
    if first is not None:
        made.timeline.add(first, 1)
    return made


def test_estimates_are_compared_with_the_wait_from_then_on() -> None:
    clients = [
        client(11.0, WaitNotice(0.5, 9, None), WaitNotice(1.0, 8, 12.0), WaitNotice(2.0, 7, 3.0)),
        client(5.0, WaitNotice(1.0, 1, 2.0)),
        client(None, WaitNotice(1.0, 50, 60.0)),  # has not begun
        client(1.0),  # never waited
    ]
    row = estimate_row(clients)
    assert row is not None
    assert list(row.values()) == [2, 7.0, 2.0, 0.0]
    assert estimate_row([]) is None


def result(name: str, *firsts: float | None) -> LightResult:
    scenario = BesideFlood(name, flood=name != "alone")
    return LightResult(scenario, [client(first) for first in firsts], ended=100.0)


def filled(*beside: LightResult) -> Report:
    report = Report("fair", {})
    shared = SharesResult(TwoFloods("two", (40, 10)), (500, 1500), (12, 50), 3)
    command.fill(report, SETTINGS, [result("alone", 0.1, 0.1), *beside], [shared])
    return report


def test_the_goal_is_met_or_missed_in_both_readings() -> None:
    assert "1.4 x alone (met" in filled(result("a flood", 0.14, 0.14)).notes[0]
    later = filled(result("a flood", 1.0, 1.0)).notes[0]
    assert "10.0 x alone (MISSED" in later
    assert "0.90 services later (met" in later
    assert "1.90 services later (MISSED" in filled(result("a flood", 2.0, 2.0)).notes[0]


def test_a_request_that_never_began_has_waited_until_the_end() -> None:
    assert result("a flood", None, 0.5).ttfts == [100.0, 0.5]


def test_shares_are_set_beside_what_each_is_entitled_to() -> None:
    rows = filled().tables[-1].rows
    assert [(row["%"], row["entitled %"]) for row in rows] == [(25, 50), (75, 50)]
