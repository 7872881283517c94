"""Socket hand-over: listen once ready, finish open requests before the end."""

import asyncio
import socket
from collections.abc import AsyncIterator
from typing import Any

import httpx
import pytest
import pytest_asyncio
from django.conf import settings

from api.server import serve, socket_handover
from api.server.edge import Edge
from api.server.limits import Limits
from api.server.socket_handover import END_STREAMS, Server

SECONDS = 20.0


class Site:
    """An application whose answers to /slow end when it is allowed, behind a server of its own."""

    def __init__(self, listener: socket.socket) -> None:
        self.listener = listener
        self.ready = asyncio.Event()
        self.allowed = asyncio.Event()
        config = serve.configuration(self._answer, Limits())
        config.lifespan = "off"
        self.server = Server(config, listener.dup(), self._until_ready)
        self.life = asyncio.create_task(self.server._serve())

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.listener.getsockname()[1]}"

    async def _until_ready(self) -> None:
        await self.ready.wait()

    async def _answer(self, scope: Any, receive: Any, send: Any) -> None:
        await send({"type": "http.response.start", "status": 200, "headers": []})
        await send({"type": "http.response.body", "body": b"begun ", "more_body": True})
        if scope["path"] == "/slow":
            await self.allowed.wait()
        await send({"type": "http.response.body", "body": b"ended"})


@pytest_asyncio.fixture
async def site() -> AsyncIterator[Site]:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        running = Site(listener)
        yield running
        running.allowed.set()
        running.server.should_exit = True
        async with asyncio.timeout(SECONDS):
            await running.life


async def get(site: Site, path: str = "/") -> str:
    """A request on a connection of its own."""
    async with httpx.AsyncClient(timeout=SECONDS) as client:
        return (await client.get(site.url + path)).text


async def listening(site: Site) -> None:
    async with asyncio.timeout(SECONDS):
        while not getattr(site.server, "servers", None):  # noqa: ASYNC110 - uvicorn offers no event
            await asyncio.sleep(0.01)


async def test_connections_are_accepted_once_it_is_ready(site: Site) -> None:
    with pytest.raises(httpx.ConnectError):
        await get(site)
    site.ready.set()
    await listening(site)
    assert await get(site) == "begun ended"


@pytest.fixture
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    """For a site that is made after it."""
    monkeypatch.setattr(socket_handover, "READY_SECONDS", 0.0)


async def test_something_missing_delays_it_and_no_more(impatient: None, site: Site) -> None:
    await listening(site)
    assert await get(site) == "begun ended"


async def test_it_finishes_what_is_open_while_a_successor_accepts(site: Site) -> None:
    ended: list[str] = []
    site.ready.set()
    await listening(site)
    site.server.lifespan.state[END_STREAMS] = lambda: ended.append("endless")
    async with (
        httpx.AsyncClient(base_url=site.url, timeout=SECONDS) as client,
        asyncio.timeout(SECONDS),
    ):
        kept = await client.get("/")
        assert "connection" not in kept.headers
        async with client.stream("GET", "/slow") as slow:
            parts = slow.aiter_text()
            assert await anext(parts) == "begun "
            site.server.finish()
            while not ended:  # noqa: ASYNC110
                await asyncio.sleep(0.01)

            successor = Site(site.listener)
            successor.ready.set()
            assert await get(successor) == "begun ended"
            assert not site.life.done()

            site.allowed.set()
            assert [part async for part in parts] == ["ended"]
        last = await client.get("/")  # on the connection that the first server kept open
        assert last.headers["connection"] == "close"
        assert "connection" not in (await client.get("/")).headers  # the successor's
        await site.life
    successor.server.should_exit = True
    await successor.life


async def test_an_unused_connection_does_not_hold_it_up_for_ever(
    site: Site, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(socket_handover, "IDLE_SECONDS", 0.0)
    site.ready.set()
    await listening(site)
    async with asyncio.timeout(SECONDS):
        await get(site)
        reader, writer = await asyncio.open_connection(*site.listener.getsockname())
        site.server.finish()
        await site.life
        assert await reader.read() == b""
        writer.close()


async def test_what_waits_at_a_stop_is_answered_in_the_api_s_shape() -> None:
    """A request that has no answer yet when the server must end."""
    begun = asyncio.Event()

    async def waiting(scope: Any, receive: Any, send: Any) -> None:
        begun.set()
        await asyncio.Event().wait()

    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        config = serve.configuration(Edge(waiting, settings.ENV), Limits())
        config.lifespan = "off"
        config.timeout_graceful_shutdown = 0  # uvicorn cancels what is left at once
        server = Server(config, listener.dup(), None)
        life = asyncio.create_task(server._serve())
        async with asyncio.timeout(SECONDS), httpx.AsyncClient() as client:
            while not getattr(server, "servers", None):  # noqa: ASYNC110
                await asyncio.sleep(0.01)
            url = f"http://127.0.0.1:{listener.getsockname()[1]}/v1/chat/completions"
            request = asyncio.create_task(client.post(url))
            await begun.wait()
            server.should_exit = True
            answer = await request
            await life
    assert (answer.status_code, answer.headers["retry-after"]) == (503, "2")
    assert answer.json()["error"]["type"] == "service_unavailable_error"
