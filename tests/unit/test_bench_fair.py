"""`bench fair`: the flood, the light user, and the table."""

import asyncio
import contextlib
import random
from collections.abc import AsyncIterator

import pytest

from bench import streaming
from bench.errors import RequestFailed
from bench.fair import batch, command
from bench.fair.command import SCENARIOS, Flood, Outcome, ask_at_intervals
from bench.report import Report
from cli.errors import first_error
from tests.listening import listening

ANSWER = b'HTTP/1.1 200 OK\r\n\r\ndata: {"choices": "word~"}\n\ndata: [DONE]\n\n\r\n0\r\n\r\n'
REQUEST = streaming.chat(1, "key", "echo", 1)


@contextlib.asynccontextmanager
async def server(answer: bytes) -> AsyncIterator[int]:
    async def on_client(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with contextlib.suppress(ConnectionError, asyncio.IncompleteReadError):
            await reader.readuntil(b"\r\n\r\n")
            writer.write(answer)
            await writer.drain()
        writer.close()

    async with listening(on_client) as port:
        yield port


async def test_a_flood_is_refilled_and_its_tokens_are_counted() -> None:
    async with server(ANSWER) as port:
        flood = Flood(port, 5, [REQUEST])
        flowing = asyncio.create_task(flood.flow())
        async with asyncio.timeout(10):
            await flood.admitted.wait()
            while len(flood.clients) < 25:  # noqa: ASYNC110 - nobody signals it
                await asyncio.sleep(0.001)
        flowing.cancel()
        await asyncio.gather(flowing, return_exceptions=True)
    assert 20 <= flood.tokens_within(0, float("inf")) <= len(flood.clients)
    assert flood.tokens_within(0, flood.clients[0].timeline.sent) == 0


async def test_a_flood_that_is_refused_says_so() -> None:
    async with server(b"HTTP/1.1 503 Service Unavailable\r\n\r\n") as port:
        with pytest.raises(ExceptionGroup) as raised:
            await Flood(port, 3, [REQUEST]).flow()
    first = first_error(raised.value)
    assert isinstance(first, RequestFailed)
    assert "503" in str(first)


async def test_a_light_user_asks_as_often_as_planned_and_learns_of_refusals(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(command, "PAUSE", (0.0, 0.0))
    rng = random.Random(1)
    async with server(ANSWER) as port:
        ttfts = await ask_at_intervals(port, REQUEST, 4, rng)
    assert len(ttfts) == 4
    assert all(0 < ttft < 5 for ttft in ttfts)
    async with server(b"HTTP/1.1 429 Too Many Requests\r\n\r\n") as port:
        with pytest.raises(RequestFailed, match="429"):
            await ask_at_intervals(port, REQUEST, 1, rng)


def test_the_table_compares_with_the_light_user_alone_and_has_the_shares_of_the_floods() -> None:
    two = Outcome(SCENARIOS[-1], [1.1, 1.1], [1500, 500])
    report = Report("fair", {})
    command.fill(report, [Outcome(SCENARIOS[0], [0.1, 0.1], []), two])
    alone, beside = report.tables[0].rows
    assert beside["x alone"] == pytest.approx(11)
    assert beside["services later"] == pytest.approx(1.0)
    assert (alone["floods got %"], beside["floods got %"]) == (None, "75.0 / 25.0")


def test_a_batch_is_charged_what_the_api_needs_beyond_the_user() -> None:
    report = Report("fair-batch", {})
    alone = batch.Phase([0.02, 0.03], {"seconds": 10.0, "api": 0.5})
    beside = batch.Phase([0.02, 0.06], {"seconds": 20.0, "api": 3.0}, lines=1000)
    batch.fill(report, alone, beside)
    first, second = report.tables[0].rows
    assert first["lines/s"] is None
    assert second["lines/s"] == pytest.approx(50)
    assert second["API ms a line"] == pytest.approx(2.0)
    assert second["x p95"] == pytest.approx(0.058 / 0.0295)
