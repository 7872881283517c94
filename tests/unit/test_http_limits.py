"""What a client may take before it is known: bytes, seconds, connections."""

import asyncio
import tracemalloc
from ipaddress import ip_network

import pytest

from api.server.limits import Connections, Limits, is_within, peer_of
from api.server.serve import within_files
from tests.unit.raw_http import (
    SECONDS,
    Echo,
    Site,
    exchange,
    read_response,
    read_responses,
    serving,
)

SMALL = Limits(head_seconds=0.2, body_seconds=0.2, stalled_seconds=0.3)
NOBODY = ()
LOOPBACK = (ip_network("127.0.0.0/8"),)
HEAD = b"GET /a HTTP/1.1\r\nHost: x\r\n"


@pytest.mark.parametrize(
    ("head", "status"),
    [
        (HEAD + b"X: " + b"a" * 40_000 + b"\r\n\r\n", 431),
        (HEAD + b"X-a: b\r\n" * 200 + b"\r\n", 431),
        (HEAD + b"X: " + b"a" * 400_000, 431),  # never complete
        (HEAD + b"a" * 400_000, 431),
        (b"GET /" + b"a" * 20_000 + b" HTTP/1.1\r\nHost: x\r\n\r\n", 414),
        (b"GET /" + b"a" * 400_000, 414),
        (
            b"POST / HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n5;" + b"a" * 400_000,
            431,
        ),
        (
            b"POST / HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n0\r\nX: "
            + b"a" * 400_000,
            431,
        ),
        (
            b"POST / HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n"
            + b"X: a\r\n" * 9000,
            431,
        ),
    ],
    ids=[
        "header",
        "headers",
        "endless value",
        "endless name",
        "url",
        "endless url",
        "extension",
        "trailer",
        "trailers",
    ],
)
async def test_a_head_is_bounded(head: bytes, status: int) -> None:
    echo = Echo()
    async with serving(echo) as server:
        [answer] = await exchange(server, head)
        assert answer.status == status
        assert answer.headers["connection"] == "close"
        assert b'"message"' in answer.body
        assert answer.headers["x-frame-options"] == "DENY"
    assert echo.requests == []


async def test_headers_within_the_limits_are_served() -> None:
    async with serving(Echo()) as server:
        head = HEAD + b"X: " + b"a" * 30_000 + b"\r\nConnection: close\r\n\r\n"
        assert [answer.status for answer in await exchange(server, head)] == [200]
        many = HEAD + b"X: a\r\n" * 100 + b"Connection: close\r\n\r\n"
        assert [answer.status for answer in await exchange(server, many)] == [200]


async def test_endless_heads_take_no_memory() -> None:
    """Four clients that send 20 MB of headers each."""

    async def flood() -> None:
        _, writer = await asyncio.open_connection(*server.address)
        try:
            for _ in range(320):
                writer.write(b"X: " + b"a" * 65_000 + b"\r\n")
                await writer.drain()
        except ConnectionError:
            pass
        finally:
            writer.close()

    async with serving(Echo()) as server, asyncio.timeout(SECONDS):
        tracemalloc.start()
        try:
            await asyncio.gather(*(flood() for _ in range(4)))
            _, peak = tracemalloc.get_traced_memory()
        finally:
            tracemalloc.stop()
    assert peak < 8_000_000


@pytest.mark.parametrize(
    "begun",
    [b"G", HEAD, HEAD + b"X: a", b"POST / HTTP/1.1\r\nHost: x\r\nContent-Length: 9\r\n\r\nabc"],
    ids=["first byte", "headers", "within a header", "body"],
)
async def test_who_sends_too_slowly_is_let_go(begun: bytes) -> None:
    echo = Echo()
    async with serving(echo, SMALL) as server, asyncio.timeout(SECONDS):
        [answer] = await exchange(server, begun)
        assert (answer.status, answer.headers["connection"]) == (408, "close")
    assert echo.requests == []


async def test_bytes_that_trickle_in_buy_no_time() -> None:
    async with serving(Echo(), SMALL) as server, asyncio.timeout(SECONDS):
        reader, writer = await asyncio.open_connection(*server.address)
        writer.write(HEAD)
        answer = asyncio.create_task(read_response(reader))
        while not answer.done():
            writer.write(b"X: a\r\n")
            await asyncio.sleep(0.02)
        assert answer.result().status == 408  # type: ignore[union-attr]
        writer.close()


async def test_an_idle_connection_ends_silently_whatever_empty_lines_come() -> None:
    async with serving(Echo()) as server, asyncio.timeout(SECONDS):
        reader, writer = await asyncio.open_connection(*server.address)
        while not server.connections:  # noqa: ASYNC110
            await asyncio.sleep(0.005)
        [protocol] = server.connections
        writer.write(b"\r\n" * 10)
        await asyncio.sleep(0.05)
        assert protocol.timeout_keep_alive_task is not None
        assert protocol.timeout_keep_alive >= 60
        protocol.timeout_keep_alive_handler()
        assert await reader.read() == b""
        writer.close()


async def test_a_long_answer_is_not_limited_by_the_times_of_a_request() -> None:
    echo = Echo()
    async with serving(echo, SMALL) as server, asyncio.timeout(SECONDS):
        reader, writer = await asyncio.open_connection(*server.address)
        writer.write(b"GET /hold HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n")
        answers = asyncio.create_task(read_responses(reader))
        await asyncio.sleep(0.5)
        assert not answers.done()
        echo.hold.set()
        assert [answer.body for answer in await answers] == [b"begunended"]
        writer.close()


async def test_who_does_not_read_is_let_go() -> None:
    gone = asyncio.Event()

    async def endless(scope: object, receive: object, send: object) -> None:
        await send({"type": "http.response.start", "status": 200, "headers": []})  # type: ignore[operator]
        try:
            while not protocol_is_closed():
                await send({"type": "http.response.body", "body": b"a" * 65_536, "more_body": True})  # type: ignore[operator]
                await asyncio.sleep(0)
        finally:
            gone.set()

    def protocol_is_closed() -> bool:
        return not server.connections

    async with serving(endless, SMALL) as server, asyncio.timeout(SECONDS):
        _, writer = await asyncio.open_connection(*server.address, limit=1024)
        writer.write(HEAD + b"\r\n")
        await gone.wait()
        writer.close()


async def test_pipelined_requests_are_bounded() -> None:
    echo = Echo()
    async with serving(echo) as server, asyncio.timeout(SECONDS):
        reader, writer = await asyncio.open_connection(*server.address)
        writer.write(b"GET /hold HTTP/1.1\r\nHost: x\r\n\r\n" + (HEAD + b"\r\n") * 1000)
        while not echo.requests:  # noqa: ASYNC110
            await asyncio.sleep(0.005)
        [protocol] = server.connections
        assert len(protocol.pipeline) <= Limits.pipelined
        echo.hold.set()
        answers = await read_responses(reader)
        assert [answer.status for answer in answers] == [200] * len(answers)
        assert len(answers) == 1 + Limits.pipelined
        assert answers[-1].headers["connection"] == "close"
        writer.close()


async def test_bodies_behind_an_unfinished_answer_are_bounded() -> None:
    """While the application waits for a disconnect, input is still read: it needs a bound."""
    echo = Echo()

    async def watching(scope: object, receive: object, send: object) -> None:
        async def watch() -> None:
            while (await receive())["type"] != "http.disconnect":  # type: ignore[operator]
                pass

        await Echo.__call__(echo, scope, receive, send)
        await watch()

    async with serving(watching) as server, asyncio.timeout(SECONDS):
        reader, writer = await asyncio.open_connection(*server.address)
        writer.write(b"GET /hold HTTP/1.1\r\nHost: x\r\n\r\n")
        while not echo.requests:  # noqa: ASYNC110
            await asyncio.sleep(0.005)
        [protocol] = server.connections
        writer.write(
            b"POST /b HTTP/1.1\r\nHost: x\r\nContent-Length: 50000000\r\n\r\n" + b"a" * 3_000_000
        )
        protocol.flow.resume_reading()
        await asyncio.sleep(0.1)
        for _ in range(40):
            protocol.flow.resume_reading()
            await asyncio.sleep(0.005)
        assert len(protocol.cycle.body) <= Limits.unread_bytes + 262_144
        echo.hold.set()
        assert [answer.body for answer in await read_responses(reader)] == [b"begunended"]
        writer.close()
    assert [path for _, path, _ in echo.requests] == ["/hold"]


async def test_connections_of_one_peer_are_counted() -> None:
    limits = Limits(peer_connections=2)
    async with serving(Echo(), limits, NOBODY) as server, asyncio.timeout(SECONDS):
        one, two = [await asyncio.open_connection(*server.address) for _ in range(2)]
        [refused] = await exchange(server, HEAD + b"\r\n")
        assert (refused.status, refused.headers["connection"]) == (503, "close")
        one[1].close()
        await one[1].wait_closed()
        await until_count(server, 1)
        [served] = await exchange(server, HEAD + b"Connection: close\r\n\r\n")
        assert served.status == 200
        two[1].close()


async def test_a_proxy_is_no_peer() -> None:
    limits = Limits(peer_connections=1, connections=3)
    async with serving(Echo(), limits, LOOPBACK) as server, asyncio.timeout(SECONDS):
        writers = [(await asyncio.open_connection(*server.address))[1] for _ in range(3)]
        [refused] = await exchange(server, HEAD + b"\r\n")
        assert refused.status == 503
        for writer in writers:
            writer.close()


async def until_count(server: Site, count: int) -> None:
    while len(server.connections) != count:  # noqa: ASYNC110
        await asyncio.sleep(0.005)


def test_connections_leave_files_for_the_database_and_the_broker() -> None:
    assert within_files(Limits(), 65_536).connections == Limits.connections
    assert within_files(Limits(), 1024).connections < 1024


def test_peers() -> None:
    assert peer_of("192.0.2.7") == "192.0.2.7"
    assert peer_of("::ffff:192.0.2.7") == "192.0.2.7"
    assert peer_of("2001:db8::1") == peer_of("2001:db8::2:3") != peer_of("2001:db8:0:1::1")
    assert peer_of("fe80::1%eth0") == "fe80::/64"
    assert is_within("::ffff:127.0.0.1", LOOPBACK)
    assert not is_within("testclient", LOOPBACK)


def test_counting_ends_where_it_began() -> None:
    counter = Connections(Limits(connections=1000, peer_connections=2), LOOPBACK)
    assert [counter.open("192.0.2.7") for _ in range(3)] == [True, True, False]
    assert counter.open("127.0.0.1")
    for host in ("192.0.2.7", "192.0.2.7", "127.0.0.1"):
        counter.close(host)
    assert counter.total == 0
    assert counter._by_peer == {}
