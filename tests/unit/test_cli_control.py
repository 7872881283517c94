"""How a command asks the launcher of a running instance."""

import asyncio
from collections.abc import AsyncGenerator
from pathlib import Path

import pytest

from cli import control, control_server
from cli.control import Message
from cli.errors import CliError
from cli.home import Home


@pytest.fixture
def home(tmp_path: Path) -> Home:
    """With a path that is too long for the address of a Unix socket."""
    home = Home(tmp_path / ("long" * 30))
    home.make()
    return home


async def test_a_command_reads_what_happens_until_it_is_done(home: Home) -> None:
    async def answer(request: Message) -> AsyncGenerator[Message]:
        for number in range(request["count"]):
            yield {"number": number}

    async with control_server.serving(home, answer):
        messages = await asyncio.to_thread(lambda: list(control.request(home, {"count": 3})))
    assert messages == [{"number": 0}, {"number": 1}, {"number": 2}]


async def test_without_a_launcher_the_command_says_so(home: Home) -> None:
    with pytest.raises(CliError, match="takes no requests"):
        list(control.request(home, {}))
    async with control_server.serving(home, _nothing):
        pass
    with pytest.raises(CliError, match="takes no requests"):
        list(control.request(home, {}))


async def test_an_interrupted_command_stops_after_the_step_it_is_at(home: Home) -> None:
    steps: list[int] = []
    stopped = asyncio.Event()
    go_on = asyncio.Event()

    async def answer(request: Message) -> AsyncGenerator[Message]:
        try:
            for number in range(100):
                steps.append(number)
                yield {"number": number}
                await go_on.wait()
        finally:
            stopped.set()

    def interrupted() -> None:
        messages = control.request(home, {})
        next(messages)
        messages.close()  # type: ignore[attr-defined]  # a generator

    async with control_server.serving(home, answer):
        await asyncio.to_thread(interrupted)
        go_on.set()
        async with asyncio.timeout(30):
            await stopped.wait()
    assert len(steps) < 100


async def test_what_is_not_a_request_disturbs_nobody(home: Home) -> None:
    async with control_server.serving(home, _nothing):
        with control.address(home) as path:
            reader, writer = await asyncio.open_unix_connection(path)
        writer.write(b"nonsense\n")
        async with asyncio.timeout(30):
            assert await reader.read() == b""
        writer.close()
        assert await asyncio.to_thread(lambda: list(control.request(home, {}))) == []


async def test_the_end_of_the_launcher_ends_the_conversation(home: Home) -> None:
    begun = asyncio.Event()

    async def answer(request: Message) -> AsyncGenerator[Message]:
        yield {"step": 1}
        begun.set()
        await asyncio.Event().wait()

    async with control_server.serving(home, answer):
        asking = asyncio.create_task(asyncio.to_thread(lambda: list(control.request(home, {}))))
        await begun.wait()
    assert await asking == [{"step": 1}]


async def _nothing(request: Message) -> AsyncGenerator[Message]:
    for message in ():
        yield message
