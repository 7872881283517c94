"""The client of RabbitMQ's management API, against small servers in its place."""

import asyncio
import base64
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import pytest

from broker.errors import ManagementError
from broker.management import Edges, edges, prune_tree
from tests.listening import listening

QUEUES = b'[{"name": "canopy.node.root"}, {"name": "canopy.inbox.root"}]'
BINDINGS = (
    b'[{"source": "canopy.jobs", "destination": "canopy.node.root", "routing_key": "m",'
    b' "properties_key": "m"},'
    b' {"source": "canopy.jobs", "destination": "canopy.node.root", "routing_key": "a b",'
    b' "properties_key": "a+b"}]'
)


@asynccontextmanager
async def management(answers: dict[str, bytes]) -> AsyncIterator[tuple[str, list[bytes]]]:
    """A server with an answer for each word of a path; its address, and the requests it got."""
    requests: list[bytes] = []

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        request = await reader.readuntil(b"\r\n\r\n")
        requests.append(request)
        for word, answer in answers.items():
            if word in request.decode():
                writer.write(answer)
        writer.close()

    async with listening(serve) as port:
        yield f"http://ad%40min:p%3Aw@127.0.0.1:{port}", requests


def ok(body: bytes) -> bytes:
    return b"HTTP/1.1 200 OK\r\nconnection: close\r\n\r\n" + body


async def test_an_answer_is_whole_before_its_connection_is_closed() -> None:
    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\n[]")
        await reader.read()  # until the client closes
        writer.close()
        await writer.wait_closed()
        closed.release()

    closed = asyncio.Semaphore(0)
    async with listening(serve) as port:
        async with asyncio.timeout(30):
            assert (await edges(f"http://a:b@127.0.0.1:{port}")).roots == {}
            for _ in range(2):  # a connection per listing
                await closed.acquire()


async def test_the_edges_come_from_two_listings_with_the_users_login() -> None:
    async with management({"bindings": ok(BINDINGS), "queues": ok(QUEUES)}) as (url, requests):
        assert await edges(url) == Edges(
            {"root": "a b"}, {}, frozenset({"root"}), frozenset({"root"})
        )
    login = base64.b64encode(b"ad@min:p:w").decode()
    assert all(f"Authorization: Basic {login}\r\n" in request.decode() for request in requests)
    assert [request.split()[1] for request in requests] == [
        b"/api/bindings/%2F",
        b"/api/queues/%2F?columns=name&disable_stats=true",
    ]


async def test_the_address_may_name_a_virtual_host() -> None:
    async with management({"bindings": ok(b"[]"), "queues": ok(b"[]")}) as (url, requests):
        await edges(f"{url}/my%2Frooms?prefix=other")
    paths = [request.split()[1] for request in requests]
    assert paths[0] == b"/api/bindings/my%2Frooms"
    assert paths[1].startswith(b"/api/queues/my%2Frooms?")


async def test_pruning_removes_edges_and_queues_that_are_not_wanted() -> None:
    listings = {
        "GET /api/bindings": ok(BINDINGS),
        "GET /api/queues": ok(b'[{"name": "canopy.node.old one"}, {"name": "canopy.node.root"}]'),
        "GET /api/exchanges": ok(b"[]"),
        "DELETE": b"HTTP/1.1 204 No Content\r\n\r\n",
    }
    async with management(listings) as (url, requests):
        await prune_tree(url, Edges({"root": "m"}, {}, frozenset(), frozenset()))
    deleted = [request.split()[1] for request in requests if request.startswith(b"DELETE")]
    assert deleted == [
        b"/api/bindings/%2F/e/canopy.jobs/q/canopy.node.root/a+b",
        b"/api/queues/%2F/canopy.node.old%20one",
    ]


@pytest.mark.parametrize(
    "answer",
    [
        b"HTTP/1.1 401 Unauthorized\r\n\r\n[]",
        b"HTTP/1.1 200 OK\r\n\r\nno JSON",
        b"HTTP/1.1 200 OK\r\n",
        b"HTTP/1.1 200 OK\r\nContent-Length: 3\r\n\r\n[]",
        b"nonsense\r\n\r\n",
        b"",
    ],
)
async def test_what_is_no_listing_is_one_error(answer: bytes) -> None:
    async with management({"bindings": answer}) as (url, _):
        with pytest.raises(ManagementError, match=r"management API at http://127\.0\.0\.1:"):
            await edges(url)


async def test_nobody_there_is_the_same_error() -> None:
    async with management({}) as (url, _):
        pass
    with pytest.raises(ManagementError):
        await edges(url)
