"""Connections that break, fall silent, or are closed by a cancel or a stop."""

import asyncio
from contextlib import aclosing

import pytest

from tests.unit.engine.openai.runs import (
    Holding,
    before,
    chat,
    cut_off,
    error_of,
    read,
    wait_for,
    whole,
)
from tests.unit.engine.upstream import (
    Asked,
    Reply,
    Script,
    answering,
    refusing,
)
from worker.engines.base import (
    EngineStopped,
)


async def garbage(asked: Asked, reply: Reply) -> None:
    await reply.begin()
    await reply.write(b'data: {"choices": [{"delta": {"content": 5}}]}\n\n')


async def broken(asked: Asked, reply: Reply) -> None:
    await reply.begin()
    await reply.write(b"data: {half\n\n")


async def endless(asked: Asked, reply: Reply) -> None:
    await reply.begin()
    await reply.write(b"data: " + b"x" * (2 << 20))
    await reply.gone.wait()


async def silent_end(asked: Asked, reply: Reply) -> None:
    await reply.begin()
    await reply.say("half an")
    await reply.end()


async def given_up(asked: Asked, reply: Reply) -> None:
    await answering("half an", reason="abort")(asked, reply)


async def no_head(asked: Asked, reply: Reply) -> None:
    return


async def no_http(asked: Asked, reply: Reply) -> None:
    await reply._send("SMTP ready\r\n\r\n")


@pytest.mark.parametrize(
    "script", [cut_off, garbage, broken, endless, silent_end, given_up, no_head, no_http]
)
async def test_an_answer_that_breaks_off_is_lost_and_its_neighbours_are_not(script: Script) -> None:
    async with before(script) as (engine, _):
        error = await error_of(engine, chat())
        assert (error.code, error.retryable, error.isolated) == ("engine", True, True)
        assert error.suspect


async def test_a_server_that_does_not_stream_is_found_out() -> None:
    async with before(refusing(200, {"choices": [{"message": {"content": "all at once"}}]})) as (
        engine,
        _,
    ):
        assert "no stream" in str(await error_of(engine, chat()))


async def test_a_server_that_ends_in_an_answer_fails_the_engine() -> None:
    async def last_words(asked: Asked, reply: Reply) -> None:
        await cut_off(asked, reply)
        upstream.close()

    async with before(last_words) as (engine, upstream):
        error = await error_of(engine, chat())
        assert (error.retryable, error.isolated) == (True, False)
        assert error.suspect


async def test_a_server_that_is_gone_fails_the_engine_and_blames_nobody() -> None:
    async with before(answering("x")) as (engine, upstream):
        await upstream.__aexit__()
        error = await error_of(engine, chat())
        assert not error.suspect
        assert not error.isolated


async def test_silence_before_and_in_an_answer_ends_it(hasty: None) -> None:
    async def nothing(request: Asked, reply: Reply) -> None:
        await reply.gone.wait()

    async def head(request: Asked, reply: Reply) -> None:
        await reply.begin()
        await reply.gone.wait()

    async def half(request: Asked, reply: Reply) -> None:
        await reply.begin()
        await reply.say("half")
        await reply.gone.wait()

    async with before(nothing, head, half) as (engine, _):
        for _ in range(3):
            error = await error_of(engine, chat())
            assert (error.retryable, error.isolated) == (True, False)


@pytest.mark.parametrize("holding", [Holding(head=False), Holding(), Holding("one", " two")])
async def test_a_cancel_closes_the_connection(holding: Holding) -> None:
    async with before(holding) as (engine, _):
        reader = asyncio.create_task(read(engine, chat()))
        await wait_for(holding.there)
        reader.cancel()
        with pytest.raises(asyncio.CancelledError):
            await reader
        await wait_for(holding.left)


async def test_closing_the_run_closes_the_connection_and_frees_the_slot() -> None:
    holding = Holding("one")
    async with before(holding, answering("two"), slots=1) as (engine, upstream):
        async with aclosing(engine.run(chat())) as chunks:  # type: ignore[type-var]
            async for chunk in chunks:
                if chunk.text:
                    break
        await wait_for(holding.left)
        assert whole(await read(engine, chat()))[0] == "two"
        assert upstream.most == 1


async def test_never_more_requests_than_slots() -> None:
    holdings = [Holding("one"), Holding("one")]
    async with before(*holdings, slots=2) as (engine, upstream):
        readers = [asyncio.create_task(read(engine, chat())) for _ in holdings]
        for holding in holdings:
            await wait_for(holding.there)
        full = await error_of(engine, chat())
        assert str(full) == "all 2 slots are taken"
        assert (full.retryable, full.suspect, full.isolated) == (True, False, True)
        assert upstream.most == 2
        for reader in readers:
            reader.cancel()
        await asyncio.gather(*readers, return_exceptions=True)


async def test_stop_ends_runs_wherever_they_are_and_start_begins_anew() -> None:
    scripts = [Holding(head=False), Holding(), Holding("one")]
    async with before(*scripts, answering("again")) as (engine, _):
        readers = [asyncio.create_task(read(engine, chat())) for _ in scripts]
        for script in scripts:
            await wait_for(script.there)
        async with asyncio.timeout(30):
            await engine.stop()
        for ended in await asyncio.gather(*readers, return_exceptions=True):
            assert isinstance(ended, EngineStopped)
        for script in scripts:
            await wait_for(script.left)
        assert isinstance(await error_of(engine, chat()), EngineStopped)
        await engine.start()
        assert whole(await read(engine, chat()))[0] == "again"


async def test_stop_reaches_a_run_that_nobody_reads(hasty: None) -> None:
    async with before(Holding("one")) as (engine, _):
        chunks = engine.run(chat())
        await anext(chunks)
        async with asyncio.timeout(30):
            await engine.stop()
        with pytest.raises(EngineStopped):
            await anext(chunks)


async def test_only_a_server_that_falls_silent_in_an_answer_is_stalled() -> None:
    waiting, answering_one = Holding(), Holding("one")
    async with before(waiting, answering_one) as (engine, _):
        assert engine.stalled() == 0.0
        first = asyncio.create_task(read(engine, chat()))
        await wait_for(waiting.there)
        assert engine.stalled() == 0.0
        chunks = engine.run(chat())
        while not (await anext(chunks)).text:
            pass
        assert engine.stalled() == 0.0, "the reader is slow, not the server"
        second = asyncio.create_task(anext(chunks))  # type: ignore[arg-type]
        async with asyncio.timeout(30):
            while engine.stalled() < 0.05:  # noqa: ASYNC110  (it is a clock that is looked at)
                await asyncio.sleep(0.01)
        for task in (first, second):
            task.cancel()
        await asyncio.gather(first, second, return_exceptions=True)
