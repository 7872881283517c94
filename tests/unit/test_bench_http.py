"""`bench http`: the streaming client, lateness of streams, and the load."""

import asyncio
import contextlib
import os
from collections.abc import AsyncIterator

import pytest

from api.requests import position as queue_position
from bench import streaming
from bench.http import load
from bench.http.lateness import lateness, received, summarize
from bench.http.load import Load
from bench.streaming import StreamClient, WaitNotice, wait_notice
from bench.timeline import Timeline
from broker.wire import NO_RUN, Waiting

RATE = 10.0
HEAD = b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\n\r\n"
WAITING = b": waiting: number 2 in line, starts in about 3 s (every slot is busy)\n\n"
ANSWER = b'data: {"choices": [{"delta": {"content": "word~"}}]}\n\n'
DONE = b"data: [DONE]\n\n"


def timeline(*arrivals: tuple[float, int]) -> Timeline:
    stream = Timeline(100.0)
    for after, tokens in arrivals:
        stream.add(100.0 + after, tokens)
    return stream


def late(stream: Timeline, begin: float, end: float) -> list[float]:
    return lateness(stream, 100.0, RATE, begin, end)


def test_a_token_is_due_at_the_start_plus_its_number_times_the_delay() -> None:
    stream = timeline((0.1, 1), (0.25, 1), (0.3, 1))
    assert late(stream, 100.0, 100.35) == pytest.approx([0.0, 0.05, 0.0, 0.0], abs=1e-9)


def test_tokens_that_come_together_are_each_late_by_their_own_due_time() -> None:
    stream = timeline((0.4, 3))
    assert late(stream, 100.0, 100.45) == pytest.approx([0.3, 0.2, 0.1, 0.05], abs=1e-9)


def test_a_stream_that_stands_still_is_late_though_nothing_comes() -> None:
    still = timeline((0.1, 1), (0.2, 1))
    assert max(late(still, 100.0, 105.0)) == pytest.approx(4.7)
    assert not summarize([still], RATE, 100.0, 105.0).holds


def test_only_the_window_counts_but_the_numbers_count_from_the_start() -> None:
    stream = timeline((0.5, 5), (0.6, 1), (0.9, 3), (1.1, 2))
    assert late(stream, 100.55, 101.0) == pytest.approx([0.0, 0.2, 0.1, 0.0, 0.0], abs=1e-9)
    assert received(stream, 100.55, 101.0) == 4
    assert stream.gaps(100.55, 101.0) == pytest.approx([0.3])


def test_a_delivery_sums_all_streams_up() -> None:
    good = timeline(*((number / 10, 1) for number in range(1, 21)))
    slow = timeline(*((number / 10 + 0.4, 1) for number in range(1, 21)))
    delivery = summarize([good, slow], RATE, 100.5, 102.0)
    assert delivery.delivered == pytest.approx(1.0, abs=0.07)
    assert delivery.tokens == delivery.arrivals
    assert delivery.worst_stream_ms == pytest.approx(400, abs=1)
    assert delivery.worst_lag_ms == pytest.approx(0, abs=1)
    assert not delivery.holds
    assert summarize([good, good], RATE, 100.5, 102.0).holds
    good.error = "ended early"
    assert not summarize([good], RATE, 100.5, 102.0).holds


@pytest.mark.parametrize(
    ("place", "seconds", "rounded"),
    [(12, 30.2, 30.0), (1, 0.4, 1.0), (900, 119.0, 120.0), (9000, 9000.0, 9000.0), (3, None, None)],
)
def test_what_the_api_says_of_a_wait_is_understood(
    place: int, seconds: float | None, rounded: float | None
) -> None:
    frame = Waiting(
        request_id="r", seq=NO_RUN, node="root", reason="busy", position=place, seconds=seconds
    )
    line = f": waiting: {queue_position.describe(frame)}".encode()
    assert wait_notice(line, 1.0) == WaitNotice(1.0, place, rounded)
    assert wait_notice(b": keep-alive", 1.0) is None


@contextlib.asynccontextmanager
async def server(*pieces: bytes) -> AsyncIterator[int]:
    """Sends `pieces` to every client, seven bytes at a time, and closes. Yields the port."""

    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with contextlib.suppress(ConnectionError, asyncio.IncompleteReadError):
            await reader.readuntil(b"\r\n\r\n")
            for piece in pieces:
                for start in range(0, len(piece), 7):
                    writer.write(piece[start : start + 7])
                    await writer.drain()
        writer.close()

    listening = await asyncio.start_server(answer, "127.0.0.1", 0)
    async with listening:
        yield listening.sockets[0].getsockname()[1]


async def ask(port: int) -> StreamClient:
    ended: asyncio.Future[StreamClient] = asyncio.get_running_loop().create_future()
    request = streaming.chat(port, "key", "echo", 2)
    await StreamClient.start(port, request, ended.set_result)
    return await asyncio.wait_for(ended, 10)


async def test_an_answer_is_read_however_it_is_cut() -> None:
    async with server(HEAD, WAITING, ANSWER, ANSWER, DONE) as port:
        client = await ask(port)
    it = client.timeline
    assert [(notice.position, notice.seconds) for notice in client.notices] == [(2, 3.0)]
    assert it.counts == [1, 1]
    assert it.accepted is not None
    assert it.first is not None
    assert it.ended is not None
    assert it.sent <= it.accepted <= client.notices[0].at <= it.first <= it.ended
    assert not it.error


async def test_a_refusal_and_a_broken_answer_are_errors() -> None:
    async with server(b"HTTP/1.1 429 Too Many Requests\r\n\r\n") as port:
        assert "429" in (await ask(port)).timeline.error
    async with server(HEAD, ANSWER) as port:
        assert "closed by the server" in (await ask(port)).timeline.error
    async with server(HEAD, b'data: {"error": {"message": "it broke"}}\n\n') as port:
        assert "it broke" in (await ask(port)).timeline.error


def plan(port: int) -> Load:
    return Load(port, "key", "echo", streams=3, rate=100.0, starts=1000.0, seconds=0.2)


async def test_the_load_counts_tokens_and_leaves(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(load, "_SETTLE", 0.05)
    left = asyncio.Semaphore(0)

    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"}")
        writer.write(b"HTTP/1.1 200 OK\r\n\r\n")
        try:
            while True:
                for part in (b'data: {"content":"wo', b'rd~"}\n\ndata: {"content":"word~"}\n\n'):
                    writer.write(part)
                    await writer.drain()
                await asyncio.sleep(0.01)
        except ConnectionError:
            left.release()

    async with await asyncio.start_server(answer, "127.0.0.1", 0) as listening:
        outcome = await load.run(
            plan(listening.sockets[0].getsockname()[1]), {"load": [os.getpid()]}
        )
        for _ in range(3):
            await asyncio.wait_for(left.acquire(), 10)
    assert outcome.delivery.tokens > 0
    assert outcome.delivery.errors == {}
    assert outcome.cpu["load"] > 0


async def test_a_refused_load_says_why() -> None:
    async with server(b"HTTP/1.1 503 Service Unavailable\r\n\r\n") as port:
        outcome = await load.run(plan(port), {})
    assert outcome.delivery.errors == {"HTTP/1.1 503 Service Unavailable": 3}
    assert not outcome.delivery.holds
