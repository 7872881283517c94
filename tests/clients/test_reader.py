"""Clients that do not read cost no more than their answers' text, and disturb nobody."""

import json
import socket
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from http.client import HTTPResponse
from urllib.parse import urlsplit

import httpx
import psutil
import pytest

from tests.instance import Instance, tree_when
from tests.realbroker import NodeProcess

READERS = 6
WORDS = 400_000
WORD = "endless"
LENGTH = WORDS * (len(WORD) + 1)  # characters of an answer
# An answer is kept once for a takeover, once as unread text, and once more while that is merged;
# an event for each few words would be many times as much.
FACTOR = 4
SLACK = 30_000_000  # bytes: what the process takes for the first crowd of any kind


@contextmanager
def fast_tree(service: Instance) -> Iterator[None]:
    """root -> a node that answers as fast as it can, for a model of its own."""
    with ExitStack() as nodes:
        for name, *options in (
            ("torrent-root", "--engine", "none"),
            ("torrent-1", "--engine", "echo", "--parent", "torrent-root", "--slots", str(READERS)),
        ):
            nodes.enter_context(NodeProcess(service.broker, name, "--model", "torrent", *options))
        yield


@contextmanager
def deaf(service: Instance, key: str) -> Iterator[socket.socket]:
    """Asks for a long streamed answer and reads nothing, with the smallest receive window."""
    body = json.dumps(
        {
            "model": "torrent",
            "stream": True,
            "max_tokens": WORDS,
            "messages": [{"role": "user", "content": WORD}],
        }
    )
    address = urlsplit(service.url)
    head = (
        f"POST /v1/chat/completions HTTP/1.1\r\nHost: {address.netloc}\r\n"
        f"Authorization: Bearer {key}\r\n"
        f"Content-Type: application/json\r\nContent-Length: {len(body)}\r\n\r\n"
    )
    with socket.socket() as connection:
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        connection.connect((address.hostname, address.port))
        connection.sendall((head + body).encode())
        yield connection


def api_process(service: Instance) -> psutil.Process:
    """The process that serves HTTP."""
    (pid,) = [each["pid"] for each in service.record()["processes"] if each["name"] == "api"]
    return psutil.Process(pid)


def all_written(tree: dict[str, list[dict[str, object]]]) -> bool:
    """The node has made every answer."""
    return any(
        node["name"] == "torrent-1" and node["finished"] == READERS for node in tree["nodes"]
    )


@pytest.mark.parametrize("then", ["close", "read"])
def test_readers_that_do_not_read(
    service: Instance, key: str, program: httpx.Client, staff: httpx.Client, then: str
) -> None:
    process = api_process(service)
    with fast_tree(service), ExitStack() as connections:
        before = process.memory_info().rss
        readers = [connections.enter_context(deaf(service, key)) for _ in range(READERS)]
        tree_when(staff, all_written, within=90)
        answer = program.post("/arranca/", json={"text": "still there", "timestamp": 1})
        assert (answer.status_code, answer.json()["text"]) == (200, "still there")
        growth = process.memory_info().rss - before
        assert growth < FACTOR * READERS * LENGTH + SLACK, (
            f"{growth / (READERS * LENGTH):.1f} times the answers"
        )
        if then == "read":
            for reader in readers:
                assert words_of(reader) == WORDS


def words_of(reader: socket.socket) -> int:
    """How many words a stream brings if it is read to its end after all."""
    reader.settimeout(30)
    answer = HTTPResponse(reader)
    answer.begin()
    assert answer.status == 200
    said = [
        json.loads(line[6:])["choices"][0]["delta"].get("content", "")
        for line in answer
        if line[:7] == b"data: {"
    ]
    return "".join(said).count(WORD)
