"""`bench http`: the streaming client, the load, and the lateness of streams."""

import asyncio
import contextlib
import os
from collections.abc import AsyncIterator

import pytest

from bench import streaming
from bench.http import command
from bench.http.command import Outcome, lateness
from bench.stats import Timeline
from bench.streaming import StreamClient
from tests.listening import listening

RATE = 10.0
HEAD = b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\n\r\n"
WAITING = b": waiting: number 2 in line, starts in about 3 s (every slot is busy)\n\n"
ANSWER = b'data: {"choices": [{"delta": {"content": "word~"}}]}\n\n'
DONE = b"data: [DONE]\n\n\r\n0\r\n\r\n"


def timeline(*arrivals: tuple[float, int]) -> Timeline:
    stream = Timeline(100.0)
    for after, tokens in arrivals:
        stream.add(100.0 + after, tokens)
    return stream


def late(stream: Timeline, begin: float, end: float) -> list[float]:
    return lateness(stream, RATE, begin, end)


def holds(begin: float, end: float, *streams: Timeline) -> object:
    return Outcome(list(streams), begin, end).cells(RATE)["holds"]


def test_a_token_is_due_at_the_start_plus_its_number_times_the_delay() -> None:
    stream = timeline((0.1, 1), (0.25, 1), (0.3, 1))
    assert late(stream, 100.0, 100.35) == pytest.approx([0.0, 0.05, 0.0, 0.0], abs=1e-9)


def test_a_stream_that_stands_still_is_late_though_nothing_comes() -> None:
    still = timeline((0.1, 1), (0.2, 1))
    assert max(late(still, 100.0, 105.0)) == pytest.approx(4.7)
    assert holds(100.0, 105.0, still) == "NO"


def test_only_the_window_counts_but_the_numbers_count_from_the_start() -> None:
    stream = timeline((0.5, 5), (0.6, 1), (0.9, 3), (1.1, 2))
    assert late(stream, 100.55, 101.0) == pytest.approx([0.0, 0.2, 0.1, 0.0, 0.0], abs=1e-9)
    assert stream.tokens_within(100.55, 101.0) == 4
    assert stream.gaps(100.55, 101.0) == pytest.approx([0.3])


def test_a_delivery_sums_all_streams_up() -> None:
    good = timeline(*((number / 10, 1) for number in range(1, 21)))
    slow = timeline(*((number / 10 + 0.4, 1) for number in range(1, 21)))
    cells = Outcome([good, slow], 100.5, 102.0, {"api": 0.0003, "seconds": 1.5}).cells(RATE)
    assert cells["delivered %"] == pytest.approx(100, abs=7)
    assert cells["worst stream p99"] == pytest.approx(400, abs=1)
    assert cells["api us"] == pytest.approx(10, abs=1)
    assert cells["holds"] == "NO"
    assert holds(100.5, 102.0, good, good) == "yes"
    good.error = "ended early"
    assert holds(100.5, 102.0, good) == "1 x ended early"


@contextlib.asynccontextmanager
async def server(*pieces: bytes, answers: int = 1) -> AsyncIterator[int]:
    """Answers with `pieces`, seven bytes at a time, so often, and closes. Yields the port."""

    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with contextlib.suppress(ConnectionError, asyncio.IncompleteReadError):
            for piece in pieces * answers:
                if piece is pieces[0]:
                    await reader.readuntil(b"}]")
                for start in range(0, len(piece), 7):
                    writer.write(piece[start : start + 7])
                    await writer.drain()
        writer.close()

    async with listening(answer) as port:
        yield port


async def ask(port: int, times: int = 1) -> Timeline:
    client = await StreamClient.open(port)
    for _ in range(times):
        client.send(streaming.chat(port, "key", "echo", 2))
        await asyncio.wait_for(client.ended.wait(), 10)
    client.close()
    return client.timeline


async def test_answers_are_read_one_after_the_other_however_they_are_cut() -> None:
    async with server(HEAD, WAITING, ANSWER, ANSWER, DONE, answers=2) as port:
        for times in (1, 2):
            it = await ask(port, times)
            assert it.tokens == 2
            assert it.ended is not None
            assert it.sent <= it.times[0] <= it.times[-1] <= it.ended
            assert not it.error
        assert "closed by the server" in (await ask(port, 3)).error


async def test_a_refusal_and_a_broken_answer_are_errors() -> None:
    async with server(b"HTTP/1.1 429 Too Many Requests\r\n\r\n") as port:
        assert "429" in (await ask(port)).error
    async with server(HEAD, ANSWER) as port:
        assert "closed by the server" in (await ask(port)).error
    async with server(HEAD, b'data: {"error": {"message": "it broke"}}\n\n') as port:
        assert "it broke" in (await ask(port)).error


async def run_load(port: int) -> Outcome:
    request = streaming.chat(port, "key", "echo", 1000)
    return await command.run_load(port, request, 3, 1000.0, 0.2, {"load": [os.getpid()]})


async def test_the_load_counts_tokens_and_leaves(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(command, "_SETTLE", 0.05)
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

    async with listening(answer) as port:
        outcome = await run_load(port)
        for _ in range(3):
            await asyncio.wait_for(left.acquire(), 10)
    assert sum(stream.tokens for stream in outcome.timelines) > 0
    assert not any(stream.error for stream in outcome.timelines)
    assert set(outcome.cpu) == {"load", "seconds"}


async def test_a_refused_load_says_why() -> None:
    async with server(b"HTTP/1.1 503 Service Unavailable\r\n\r\n") as port:
        outcome = await run_load(port)
    assert outcome.cells(RATE)["holds"] == "3 x HTTP/1.1 503 Service Unavailable"
