"""Sockets: what a client may send, and what becomes of it."""

import asyncio
import json
from collections.abc import AsyncGenerator, AsyncIterator
from contextlib import asynccontextmanager, suppress
from typing import Any

import pytest
import pytest_asyncio
from hypothesis import given
from hypothesis import strategies as st

from cli.gateway import connection, messages, server
from cli.gateway.connection import close
from cli.gateway.messages import BadLine, Cancel, Question
from cli.gateway.server import BAD_KEY_SECONDS, MOST_BAD_KEYS, BadKeys, Gateway
from cli.gateway.upstream import Refused
from tests.listening import listening

KEY = b"canopy_key"


class FakeApi:
    """Answers with the question's words, one at a time as `step` allows."""

    def __init__(self) -> None:
        self.bodies: list[dict[str, Any]] = []
        self.closed = 0  # answers that ended before their last line
        self.step: asyncio.Semaphore | None = None  # None: at once

    async def models(self, key: str, sender: str) -> list[str]:
        if key.encode() != KEY:
            raise Refused(401, "invalid_api_key", "no such key")
        return ["tiny"]

    async def answer(
        self, body: dict[str, Any], key: str, sender: str
    ) -> AsyncGenerator[bytes, None]:
        self.bodies.append(body)
        if body["text"] == "refuse":
            raise Refused(429, "backlog_full", "too many wait")
        done = False
        try:
            yield b""
            for word in body["text"].split():
                if self.step is not None:
                    await self.step.acquire()
                yield json.dumps({"kind": "text", "text": word}).encode()
            done = True
            yield json.dumps({"kind": "done", "text": body["text"]}).encode()
        finally:
            self.closed += not done


@pytest.fixture
def api() -> FakeApi:
    return FakeApi()


Streams = tuple[asyncio.StreamReader, asyncio.StreamWriter]


@pytest_asyncio.fixture
async def served(api: FakeApi) -> AsyncIterator[Gateway]:
    """A gateway."""
    gateway = Gateway(api)  # type: ignore[arg-type]
    yield gateway
    await gateway.finish()


@pytest_asyncio.fixture
async def port(served: Gateway) -> AsyncIterator[int]:
    """Where it listens."""
    async with listening(served.serve, limit=messages.MAX_LINE) as port:
        yield port


@asynccontextmanager
async def client(port: int, *lines: bytes) -> AsyncIterator[Streams]:
    """A connection that begins with these lines."""
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    writer.write(b"".join(line + b"\n" for line in lines))
    try:
        yield reader, writer
    finally:
        await close(writer)


async def frames(reader: asyncio.StreamReader, count: int) -> list[dict[str, Any]]:
    """The next lines, without empty ones."""
    found: list[dict[str, Any]] = []
    async with asyncio.timeout(10):
        while len(found) < count:
            line = await reader.readline()
            assert line, found
            if line.strip():
                found.append(json.loads(line))
    return found


def question(text: str, **fields: Any) -> bytes:
    return json.dumps({"text": text, "timestamp": 1, **fields}).encode()


async def test_a_question_is_answered_in_lines(api: FakeApi, port: int) -> None:
    async with client(port, KEY, question("one two", id="a", max_tokens=9)) as (reader, _writer):
        ready, *answer = await frames(reader, 4)
    assert ready == {"kind": "ready", "models": ["tiny"]}
    assert [frame["kind"] for frame in answer] == ["text", "text", "done"]
    assert {frame["id"] for frame in answer} == {"a"}
    assert api.bodies == [{"text": "one two", "timestamp": 1, "stream": True, "max_tokens": 9}]


async def test_a_client_that_only_sends_gets_its_answers_before_the_end(
    api: FakeApi, port: int
) -> None:
    """As `echo … | nc` does."""
    lines = (b'{"key": "canopy_key"}', question("a", stream=False))
    async with client(port, *lines) as (reader, writer):
        writer.write_eof()
        answer = (await reader.read()).splitlines()
    assert [json.loads(line)["kind"] for line in answer if line] == ["ready", "done"]


async def test_an_answer_can_be_cancelled_while_others_go_on(api: FakeApi, port: int) -> None:
    api.step = asyncio.Semaphore(1)
    async with client(port, KEY, question("a b", id="x")) as (reader, writer):
        await frames(reader, 2)
        writer.write(question("c", id="y") + b"\n" + b'{"cancel": "x"}\n')
        assert await frames(reader, 1) == [{"kind": "cancelled", "id": "x"}]
        assert api.closed == 1
        api.step.release()
        assert [frame["id"] for frame in await frames(reader, 2)] == ["y", "y"]


async def test_closing_the_connection_cancels_its_answers(api: FakeApi, port: int) -> None:
    api.step = asyncio.Semaphore(0)
    async with client(port, KEY, question("a b")) as (reader, writer):
        await frames(reader, 1)
        while not api.bodies:  # noqa: ASYNC110 - the fake has no event
            await asyncio.sleep(0)
        writer.transport.abort()
        async with asyncio.timeout(10):
            while not api.closed:  # noqa: ASYNC110 - as above
                await asyncio.sleep(0.001)


@pytest.mark.parametrize(
    ("line", "code"),
    [
        (b"what?", "bad_line"),
        (b'{"text": "", "timestamp": 1}', "bad_line"),
        (b'{"text": "a"}', "bad_line"),
        (b'{"cancel": "nobody"}', "not_open"),
        (b"[" * 100_000, "bad_line"),
        (b'{"text": "refuse", "timestamp": 1}', "backlog_full"),
    ],
)
async def test_what_cannot_be_done_is_said_and_the_connection_goes_on(
    port: int, line: bytes, code: str
) -> None:
    async with client(port, KEY, line, question("a")) as (reader, _writer):
        found = await frames(reader, 4)
    assert code in {frame.get("code") for frame in found}
    assert "done" in {frame["kind"] for frame in found}


async def test_too_many_questions_at_a_time_are_refused(
    api: FakeApi, port: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(connection, "MOST_QUESTIONS", 2)
    api.step = asyncio.Semaphore(0)
    questions = [question("a", id=str(number)) for number in range(3)]
    async with client(port, KEY, *questions) as (reader, _):
        _, refused = await frames(reader, 2)
    assert (refused["code"], refused["id"]) == ("too_many", "2")


@pytest.mark.parametrize("line", [b"", b"no such key", b'{"key": 3}', b"x" * 600, b"\xff\xfe"])
async def test_without_a_key_there_is_no_connection(api: FakeApi, port: int, line: bytes) -> None:
    async with client(port, line, question("a")) as (reader, _):
        [error] = await frames(reader, 1)
        assert error["kind"] == "error"
        assert await reader.read() == b""
    assert api.bodies == []


async def test_a_line_without_an_end_ends_the_connection(api: FakeApi, port: int) -> None:
    async with client(port, KEY, b"x" * (messages.MAX_LINE + 10)) as (reader, _writer):
        _, error = await frames(reader, 2)
        assert error["code"] == "bad_line"
        assert await reader.read() == b""


async def test_one_address_has_so_many_connections(
    api: FakeApi, port: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(server, "MOST_OF_ONE", 1)
    async with client(port, KEY) as (first, _):
        await frames(first, 1)
        async with client(port, KEY) as (second, _):
            assert (await frames(second, 1))[0]["code"] == "too_many"


async def test_a_stopping_gateway_completes_what_is_open(
    api: FakeApi, served: Gateway, port: int
) -> None:
    api.step = asyncio.Semaphore(0)
    async with client(port, KEY, question("a")) as (reader, _writer):
        await frames(reader, 1)
        while not api.bodies:  # noqa: ASYNC110 - the fake has no event
            await asyncio.sleep(0)
        finishing = asyncio.create_task(served.finish())
        await asyncio.sleep(0)
        api.step.release()
        assert [frame["kind"] for frame in await frames(reader, 2)] == ["text", "done"]
        await finishing


async def test_a_stopping_gateway_ends_what_takes_too_long_without_a_traceback(
    api: FakeApi, served: Gateway, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(server, "FINISH_SECONDS", 0.05)
    reported: list[dict[str, Any]] = []
    asyncio.get_running_loop().set_exception_handler(lambda _, context: reported.append(context))
    api.step = asyncio.Semaphore(0)
    listener = await asyncio.start_server(served.accept, "127.0.0.1", 0)
    async with listener:
        port = listener.sockets[0].getsockname()[1]
        async with client(port, KEY, question("a")) as (reader, _writer):
            await frames(reader, 1)
            await served.finish()
            assert (await reader.read()).strip() == b""
    assert reported == []


async def test_only_wrong_keys_count_as_such(
    api: FakeApi, port: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Not those that the API cannot judge: after its restart their clients come again."""

    async def away(key: str, sender: str) -> list[str]:
        raise Refused(503, "unreachable", "the API does not answer")

    with monkeypatch.context() as patch:
        patch.setattr(api, "models", away)
        for _ in range(MOST_BAD_KEYS):
            async with client(port, KEY) as (reader, _writer):
                assert [each["code"] for each in await frames(reader, 1)] == ["unreachable"]
                assert await reader.read() == b""
    async with client(port, KEY) as (reader, _writer):
        assert [each["kind"] for each in await frames(reader, 1)] == ["ready"]


@pytest.mark.parametrize(
    ("address", "network"),
    [("10.0.0.9", "10.0.0.9"), ("2001:db8::7%eth0", "2001:db8::/64"), ("::1", "::/64")],
)
def test_an_ipv6_client_is_its_network(address: str, network: str) -> None:
    assert server._network(address) == network


def test_bad_keys_block_their_address_for_a_while() -> None:
    bad = BadKeys()
    for _ in range(MOST_BAD_KEYS):
        assert not bad.blocked("10.0.0.9", 0.0)
        bad.add("10.0.0.9", 0.0)
    assert bad.blocked("10.0.0.9", 1.0)
    assert not bad.blocked("10.0.0.8", 1.0)
    assert not bad.blocked("10.0.0.9", BAD_KEY_SECONDS)


@given(st.binary(max_size=300))
def test_any_line_is_understood_or_refused(line: bytes) -> None:
    for parse in (messages.parse, messages.parse_key):
        with suppress(BadLine):
            assert isinstance(parse(line), Question | Cancel | str)
