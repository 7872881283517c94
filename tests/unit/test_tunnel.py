"""Tunnels: who gets one, what passes through it, and how it ends. No broker: bytes are echoed."""

import asyncio
import contextlib
from collections.abc import AsyncIterator
from typing import Any

import pika.frame
import pika.spec
import pytest

from api.accounts.guesses import MOST, Guesses
from api.server.limits import Limits
from api.tunnel import endpoint
from api.tunnel.endpoint import Tunnels
from broker import tunnel
from broker.addresses import addresses
from broker.errors import AccessRefused, BrokerError, ConnectionLost
from broker.tunnel import Tunnel
from broker.tunnel_end import TunnelEnd
from broker.tunnel_login import OpeningLogin
from tests.listening import connected, copy, listening
from tests.unit.raw_http import Site, exchange, serving

PASSWORD = "se,cr:et"
LARGE = bytes(range(256)) * 40_000  # more than all buffers between both ends


class EchoEnd(TunnelEnd):
    """In the broker's place: echoes what is sent."""

    def __init__(self, port: int) -> None:
        super().__init__(f"amqp://api:x@127.0.0.1:{port}/")
        self.checked: list[str] = []

    async def check(self, user: str, password: str) -> None:
        self.checked.append(user)
        if password != PASSWORD:
            raise AccessRefused("no")

    def opening(self, user: str) -> OpeningLogin:
        return Anything(user)


class Anything(OpeningLogin):
    """Lets all bytes pass: no AMQP is spoken here."""

    def pass_on(self, data: bytes) -> bytes:
        return data


class Place:
    """A web server with tunnels."""

    def __init__(self, end: EchoEnd, site: Site, tunnels: Tunnels) -> None:
        self.end = end
        self.site = site
        self.tunnels = tunnels

    def url(self, password: str = "se%2Ccr%3Aet", path: str = "") -> str:
        host, port = self.site.address
        return f"http://n1:{password}@{host}:{port}{path}"

    async def open(self, url: str) -> Tunnel:
        (address,) = addresses(url)
        return await Tunnel.open(address)

    async def empty(self) -> None:
        """Returns when the server has no connection any more."""
        while self.site.connections:  # noqa: ASYNC110 - it offers no event
            await asyncio.sleep(0.01)

    async def failure(self, url: str) -> BrokerError:
        with pytest.raises(BrokerError) as raised:
            await self.open(url)
        return raised.value


@contextlib.asynccontextmanager
async def place(*, enabled: bool = True) -> AsyncIterator[Place]:
    async with listening(copy) as port:
        end = EchoEnd(port)
        tunnels = Tunnels(end, Guesses())

        async def application(scope: dict[str, Any], receive: Any, send: Any) -> None:
            if scope["type"] == "websocket":
                await tunnels(scope, receive, send)
                return
            await send({"type": "http.response.start", "status": 404, "headers": []})
            await send({"type": "http.response.body", "body": b""})

        async with serving(application, Limits(), tunnel=enabled) as site:
            yield Place(end, site, tunnels)


@contextlib.asynccontextmanager
async def through(
    opened: Tunnel,
) -> AsyncIterator[tuple[asyncio.StreamReader, asyncio.StreamWriter]]:
    """A connection through that tunnel, as pika makes one."""
    (address,) = addresses(opened.url)
    host, _, port = address.place.rpartition(":")
    async with connected(host, int(port)) as streams:
        yield streams


@pytest.mark.parametrize("path", ["", "/", "/canopy", "/canopy/", "/a/broker/tunnel"])
async def test_bytes_pass_both_ways_wherever_the_pages_are(path: str) -> None:
    async with place() as here, asyncio.timeout(20):
        opened = await here.open(here.url(path=path))
        async with through(opened) as (reader, writer):
            writer.write(LARGE)
            assert await reader.readexactly(len(LARGE)) == LARGE
        await here.empty()
        assert here.end.checked == ["n1"]


async def test_the_address_for_pika_keeps_login_and_virtual_host() -> None:
    async with place() as here:
        opened = await here.open(f"{here.url()}/?vhost=/room%201&prefix=x")
        assert opened.url.startswith("amqp://n1:se%2Ccr%3Aet@127.0.0.1:")
        assert opened.url.endswith("/%2Froom%201")
        await opened.close()


async def test_a_tunnel_that_is_closed_in_use_reports_no_error() -> None:
    """As each node's is at its end: what its loop reports would stand in its log."""
    reported: list[dict[str, Any]] = []
    asyncio.get_running_loop().set_exception_handler(lambda _, context: reported.append(context))
    async with place() as here, asyncio.timeout(20):
        opened = await here.open(here.url())
        async with through(opened) as (reader, writer):
            writer.write(b"x")
            assert await reader.readexactly(1) == b"x"
            await opened.close()
            assert await reader.read() == b""
        await here.empty()
    assert reported == []


async def test_a_wrong_password_gets_no_connection_to_the_broker() -> None:
    async with place() as here:
        error = await here.failure(here.url("wrong"))
        assert isinstance(error, AccessRefused)
        for number in range(MOST):
            await here.failure(here.url(f"wrong{number}"))
        error = await here.failure(here.url("another"))
        assert "too many wrong passwords" in str(error)
        assert len(here.end.checked) == MOST


async def test_without_tunnels_the_answer_says_how_to_turn_them_on() -> None:
    async with place(enabled=False) as here:
        assert "up --tunnel" in str(await here.failure(here.url()))
        assert here.end.checked == []


async def test_nobody_gets_more_tunnels_than_there_are(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(endpoint, "MOST_TUNNELS", 1)
    async with place() as here, asyncio.timeout(20):
        first = await here.open(here.url())
        assert "all tunnels are taken" in str(await here.failure(here.url()))
        await first.close()
        second = await first_free(here)
        await second.close()


async def first_free(here: Place) -> Tunnel:
    """A tunnel, once the server has noticed the end of another."""
    while True:
        try:
            return await here.open(here.url())
        except ConnectionLost:
            await asyncio.sleep(0.01)


async def test_a_tunnel_that_says_nothing_is_ended(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(endpoint, "IDLE_SECONDS", 0.05)
    async with (
        asyncio.timeout(20),
        place() as here,
        through(await here.open(here.url())) as (reader, _),
    ):
        assert await reader.read() == b""


async def test_a_server_that_stops_ends_its_tunnels() -> None:
    async with place() as here, asyncio.timeout(20):
        async with through(await here.open(here.url())) as (reader, writer):
            writer.write(b"x")
            assert await reader.readexactly(1) == b"x"
            here.tunnels.end()
            assert await reader.read() == b""
        await here.empty()


async def test_a_peer_that_answers_no_ping_is_given_up(monkeypatch: pytest.MonkeyPatch) -> None:
    """As one whose link is cut behind a proxy, where no kernel notices."""
    monkeypatch.setattr(tunnel, "PING_SECONDS", 0.05)
    monkeypatch.setattr(tunnel, "PONG_SECONDS", 0.1)
    async with (
        asyncio.timeout(20),
        place() as here,
        through(await here.open(here.url())) as (reader, _),
    ):
        for connection in here.site.connections:
            connection.transport.pause_reading()
        assert await reader.read() == b""


async def test_the_tunnels_path_is_no_page() -> None:
    async with place() as here:
        (response,) = await exchange(
            here.site, b"GET /broker/tunnel HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n"
        )
        assert response.status == 404


# ---- who logs in through a tunnel

HEADER = b"AMQP\x00\x00\x09\x01"


def login(user: str, mechanism: str = "PLAIN") -> bytes:
    """The first frame of a client."""
    response = f"\0{user}\0secret"
    start_ok = pika.spec.Connection.StartOk({"product": "test"}, mechanism, response)
    return bytes(pika.frame.Method(0, start_ok).marshal())


def test_the_tunnels_own_user_logs_in_however_the_bytes_arrive() -> None:
    said = HEADER + login("canopy.node.n1") + b"what follows"
    for size in (1, 7, 100, len(said)):
        opening = OpeningLogin("canopy.node.n1")
        parts = [opening.pass_on(said[at : at + size]) for at in range(0, len(said), size)]
        assert b"".join(parts) == said


def test_the_header_passes_before_the_login() -> None:
    """The broker answers it, and the client waits for that."""
    assert OpeningLogin("canopy.node.n1").pass_on(HEADER) == HEADER


@pytest.mark.parametrize(
    "said",
    [
        HEADER + login("guest"),
        HEADER + login("canopy.node.n1\0guest"),
        HEADER + login("canopy.node.n1", "AMQPLAIN"),
        HEADER + bytes(pika.frame.Heartbeat().marshal()) + login("guest"),
        HEADER + HEADER + login("canopy.node.n1"),
        HEADER + b"\x01\x00\x00\x00\x00\x00\x04\xff\xff\xff\xff\xce",
        HEADER + b"\x01\x00\x00\xff\xff\xff\xff" + bytes(70_000),
        b"AMQP\x03\x01\x00\x00" + login("canopy.node.n1"),  # AMQP 1.0 logs in otherwise
        b"GET / HTTP/1.1\r\n\r\n",
    ],
)
def test_nobody_else_logs_in_through_it(said: bytes) -> None:
    with pytest.raises(AccessRefused):
        OpeningLogin("canopy.node.n1").pass_on(said)


@pytest.mark.parametrize("user", ["guest", "admin", "node", "canopy.node.", "canopy.node.a.b", ""])
async def test_only_joined_nodes_get_a_tunnel(user: str) -> None:
    """Others are refused before the broker is asked, which would let `guest` in from here."""
    with pytest.raises(AccessRefused, match="nodes that have joined"):
        await TunnelEnd("amqp://api:x@127.0.0.1:1/").check(user, "guest")
