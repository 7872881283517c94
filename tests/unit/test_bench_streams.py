"""`bench http`: lateness of streams, the search for how many hold, and the load that reads them."""

import asyncio

import pytest
from hypothesis import given
from hypothesis import strategies as st

from bench.streams import load
from bench.streams.load import Order
from bench.streams.schedule import Track, read
from bench.streams.search import STEP, Search


def track(*arrivals: tuple[float, int], rate: float = 10.0, sent: float = 100.0) -> Track:
    made = Track(rate, sent)
    for after, tokens in arrivals:
        made.took(sent + after, tokens)
    return made


def test_a_token_is_due_at_the_start_plus_its_number_times_the_delay() -> None:
    found = track((0.1, 1), (0.25, 1), (0.3, 1)).lateness(100.0, 100.35)
    assert found == pytest.approx([0.0, 0.05, 0.0, 0.0], abs=1e-9)


def test_after_the_first_token_only_what_comes_later_counts() -> None:
    late_start = track((0.5, 1), (0.6, 1), (0.85, 1))
    assert late_start.lag(100.0, 100.85) == pytest.approx([0.0, 0.0, 0.15, 0.05], abs=1e-9)
    assert late_start.lateness(100.0, 100.85) == pytest.approx([0.4, 0.4, 0.55, 0.45], abs=1e-9)
    assert track().lag(100.0, 101.0) == pytest.approx([0.9])


def test_tokens_that_come_together_are_each_late_by_their_own_due_time() -> None:
    found = track((0.4, 3)).lateness(100.0, 100.45)
    assert found == pytest.approx([0.3, 0.2, 0.1, 0.05], abs=1e-9)


def test_a_stream_that_stands_still_is_late_though_nothing_comes() -> None:
    still = track((0.1, 1), (0.2, 1))
    assert max(still.lateness(100.0, 105.0)) == pytest.approx(4.7)
    assert not read([still], 100.0, 105.0).holds


def test_only_the_window_counts_but_the_numbers_count_from_the_start() -> None:
    stream = track((0.5, 5), (0.6, 1), (0.9, 3), (1.1, 2))
    assert stream.lateness(100.55, 101.0) == pytest.approx([0.0, 0.2, 0.1, 0.0, 0.0], abs=1e-9)
    assert stream.received(100.55, 101.0) == 4
    assert stream.gaps(100.55, 101.0) == pytest.approx([0.3])
    assert stream.first_token() == pytest.approx(0.5)


def test_a_reading_sums_all_streams_up() -> None:
    good = track(*((number / 10, 1) for number in range(1, 21)))
    late = track(*((number / 10 + 0.4, 1) for number in range(1, 21)))
    reading = read([good, late], 100.5, 102.0)
    assert reading.delivered == pytest.approx(1.0, abs=0.07)
    assert reading.tokens == reading.writes
    assert reading.never_behind == 0.5
    assert reading.worst_stream == pytest.approx(400, abs=1)
    assert reading.worst_lag == pytest.approx(0, abs=1)
    assert not reading.holds
    assert read([good, good], 100.5, 102.0).holds


def test_a_broken_stream_does_not_hold() -> None:
    good = track(*((number / 10, 1) for number in range(1, 21)))
    good.error = "ended early"
    reading = read([good], 100.5, 102.0)
    assert reading.errors == {"ended early": 1}
    assert not reading.holds


@given(limit=st.integers(0, 4000), first=st.integers(1, 3000))
def test_the_search_ends_within_a_step_of_the_limit(limit: int, first: int) -> None:
    search = Search(first, tries=100)
    tried = []
    while (streams := search.next()) is not None:
        tried.append(streams)
        search.tell(streams, held=streams <= limit)
    assert len(tried) == len(set(tried)), "nothing is tried twice"
    assert search.holds <= limit
    assert search.fails is not None
    assert limit < search.fails <= search.holds + STEP


def test_the_search_stops_when_its_tries_are_used_up() -> None:
    search = Search(100, tries=3)
    tried = []
    while (streams := search.next()) is not None:
        tried.append(streams)
        search.tell(streams, held=True)
    assert tried == [100, 200, 400]
    assert search.holds == 400


def order(port: int) -> Order:
    return Order(
        ports=(port,), key="key", model="echo", streams=3, rate=100.0, starts=1000.0, seconds=0.2
    )


async def test_the_load_counts_tokens_however_they_are_cut(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(load, "_SETTLE", 0.05)
    asked: list[bytes] = []
    left = asyncio.Semaphore(0)

    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        asked.append(await reader.readuntil(b"}"))
        writer.write(b"HTTP/1.1 200 OK\r\n\r\n")
        try:
            while True:
                for part in (
                    b'data: {"content":"wo',
                    b'rd~"}\n\n',
                    b'data: {"content":"word~ word~"}\n\n',
                ):
                    writer.write(part)
                    await writer.drain()
                await asyncio.sleep(0.01)
        except ConnectionError:
            left.release()

    server = await asyncio.start_server(answer, "127.0.0.1", 0)
    async with server:
        port = server.sockets[0].getsockname()[1]
        outcome = await load.run(order(port))
        for _ in range(3):
            await asyncio.wait_for(left.acquire(), 10)
    assert len(asked) == 3
    assert all(b"POST /v1/chat/completions" in each and b"Bearer key" in each for each in asked)
    assert outcome.reading.tokens > 0
    assert outcome.reading.errors == {}


async def test_a_refusal_is_an_error_and_says_which() -> None:
    async def refuse(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"}")
        writer.write(b"HTTP/1.1 503 Service Unavailable\r\nContent-Length: 0\r\n\r\n")
        await writer.drain()
        await reader.read()
        writer.close()

    server = await asyncio.start_server(refuse, "127.0.0.1", 0)
    async with server:
        outcome = await load.run(order(server.sockets[0].getsockname()[1]))
    assert outcome.reading.errors == {"HTTP/1.1 503 Service Unavailable": 3}
    assert not outcome.reading.holds
