"""bench fair's parts: what a waiting reader is told, one request from a server of our own, the flood, the verdicts."""

import asyncio
import contextlib
import random
from collections.abc import AsyncIterator

import pytest

from api.requests import position as queue_position
from bench.fair import table, users
from bench.fair.asking import Asking, Question, Told, Track, told
from bench.fair.estimates import Estimate, Honesty, estimates
from bench.fair.scenarios import Beside, Found, Settings, Shared, Shares
from bench.report import Report
from broker.wire import NO_RUN, Waiting

SETTINGS = Settings(2, 4, 20, 0.05, 10, (0.5, 1.0), 100, 6, 20.0, 1)


@pytest.mark.parametrize(
    ("position", "seconds", "heard"),
    [
        (12, 30.2, 30.0),
        (1, 0.4, 1.0),
        (900, 119.0, 120.0),
        (9000, 9000.0, 9000.0),
        (3, None, None),
        (None, None, None),
    ],
)
def test_what_the_api_says_is_understood(
    position: int | None, seconds: float | None, heard: float | None
) -> None:
    frame = Waiting(
        request_id="r",
        seq=NO_RUN,
        node="root",
        reason="every slot is busy",
        position=position,
        seconds=seconds,
    )
    assert told(f": waiting: {queue_position.describe(frame)}".encode(), 1.0) == Told(
        1.0, position, heard
    )


def test_other_lines_tell_nothing() -> None:
    assert told(b": keep-alive", 1.0) is None
    assert told(b'data: {"waiting": "number 3 in line"}', 1.0) is None


HEAD = b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\n\r\n"
WAITING = b": waiting: number 2 in line, starts in about 3 s (every slot is busy)\n\n"
ANSWER = b'data: {"choices": [{"delta": {"content": "word~"}}]}\n\n'
DONE = b"data: [DONE]\n\n"


@contextlib.asynccontextmanager
async def server(*pieces: bytes) -> AsyncIterator[int]:
    """Sends `pieces` to whoever asks, seven bytes at a time, and closes. Yields the port."""

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


async def ask(port: int) -> Track:
    ended: asyncio.Future[Asking] = asyncio.get_running_loop().create_future()
    await Asking.start(port, Question("key", 2), ended.set_result)
    return (await asyncio.wait_for(ended, 10)).track


async def test_an_answer_is_read_as_it_comes() -> None:
    async with server(HEAD, WAITING, ANSWER, ANSWER, DONE) as port:
        track = await ask(port)
    assert [(each.position, each.seconds) for each in track.told] == [(2, 3.0)]
    assert [count for _, count in track.tokens] == [1, 1]
    assert track.accepted is not None
    assert track.first is not None
    assert track.ended is not None
    assert track.sent <= track.accepted <= track.told[0].at <= track.first <= track.ended
    assert not track.error


async def test_a_refusal_and_a_broken_answer_are_errors() -> None:
    async with server(b"HTTP/1.1 429 Too Many Requests\r\n\r\n") as port:
        assert "429" in (await ask(port)).error
    async with server(HEAD, ANSWER) as port:
        assert "closed by the server" in (await ask(port)).error
    async with server(HEAD, b'data: {"error": {"message": "it broke"}}\n\n') as port:
        assert "it broke" in (await ask(port)).error


async def test_a_flood_is_refilled_and_its_tokens_are_counted() -> None:
    async with server(HEAD, WAITING, ANSWER, DONE) as port:
        asked: list[int] = []
        often = asyncio.Event()

        def length() -> int:
            asked.append(1)
            if len(asked) == 25:
                often.set()
            return 1

        flood = users.Flood(port, "key", 5, length)
        async with flood.flowing(), asyncio.timeout(10):
            await flood.taken_in.wait()
            await often.wait()
    assert flood.tokens_between(0, float("inf")) >= 20
    assert flood.tokens_between(0, flood.tracks[0].sent) == 0


async def test_a_flood_that_is_refused_says_so() -> None:
    async with server(b"HTTP/1.1 503 Service Unavailable\r\n\r\n") as port:
        flood = users.Flood(port, "key", 3, lambda: 1)
        with pytest.raises(users.Refused, match="503"):
            async with flood.flowing(), asyncio.timeout(10):
                await flood.taken_in.wait()


async def test_who_asks_now_and_then_asks_as_often_as_told_and_hears_of_refusals() -> None:
    question, dice = Question("key", 1), random.Random(1)
    async with server(HEAD, ANSWER, DONE) as port:
        tracks = await users.now_and_then(port, question, (0.0, 0.0), dice, lambda asked: asked < 4)
    assert [len(track.tokens) for track in tracks] == [1, 1, 1, 1]
    async with server(b"HTTP/1.1 429 Too Many Requests\r\n\r\n") as port:
        with pytest.raises(users.Refused, match="429"):
            await users.now_and_then(port, question, (0.0, 0.0), dice, lambda asked: asked < 1)


def track(sent: float, first: float | None, *heard: Told) -> Track:
    return Track(sent=sent, told=list(heard), tokens=[] if first is None else [(first, 1)])


def test_estimates_are_compared_with_the_wait_from_then_on() -> None:
    tracks = [
        track(0.0, 11.0, Told(0.5, 9, None), Told(1.0, 8, 12.0), Told(2.0, 7, 3.0)),
        track(0.0, 5.0, Told(1.0, 1, 2.0)),
        track(0.0, None, Told(1.0, 50, 60.0)),  # has not begun
        track(0.0, 1.0),  # never waited
    ]
    found = estimates(tracks)
    assert found == [Estimate(12.0, 10.0), Estimate(2.0, 4.0)]
    honest = Honesty.of(found)
    assert (honest.count, honest.waited, honest.error, honest.bias) == (2, 7.0, 2.0, 0.0)
    assert honest.relative == pytest.approx(0.35)


def test_nobody_told_is_no_estimate() -> None:
    with pytest.raises(ValueError, match="nobody"):
        Honesty.of([])


def found(name: str, *firsts: float | None) -> Found:
    return Found(
        Beside(name, flood=name != "alone"), [track(0.0, first) for first in firsts], ended=100.0
    )


def notes(*beside: Found) -> list[str]:
    result = Report("fair", {})
    shared = Shared(Shares("two", (40, 10)), (500, 500), (12, 50), 3)
    table.tell(result, SETTINGS, [found("alone", 0.1, 0.1), *beside], [shared])
    return result.notes


def test_the_goal_is_met_or_missed_in_both_readings() -> None:
    assert "1.4 x alone (met" in notes(found("a flood", 0.14, 0.14))[0]
    later = notes(found("a flood", 1.0, 1.0))[0]
    assert "10.0 x alone (MISSED" in later
    assert "0.90 services later (met" in later
    assert "1.90 services later (MISSED" in notes(found("a flood", 2.0, 2.0))[0]


def test_who_never_began_has_waited_until_the_end() -> None:
    assert found("a flood", None, 0.5).firsts == [100.0, 0.5]
