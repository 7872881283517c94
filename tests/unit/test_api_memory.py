"""What a request costs while its job waits: its prompt once, and little else."""

import asyncio
import gc
import json
import tracemalloc
from collections.abc import Iterator
from typing import Any
from urllib.parse import urlsplit

import httpx
import pytest

from tests.unit.api_site import FakeClient, node_state, until

REQUESTS = 20
SIZE = 400_000  # characters of a prompt
MOST = 1.3  # times the prompts' size; it is 1.0 and something

PROMPT = "x" * SIZE
CHAT = {"model": "tiny", "messages": [{"role": "user", "content": PROMPT}]}
PARTS = [{"type": "text", "text": PROMPT}]
CASES: list[tuple[str, dict[str, Any], bool]] = [
    ("/v1/chat/completions", CHAT, False),
    ("/v1/chat/completions", CHAT, True),
    ("/v1/chat/completions", {**CHAT, "stream": True}, False),
    ("/v1/chat/completions", {**CHAT, "stream": True}, True),
    ("/v1/chat/completions", {**CHAT, "messages": [{"role": "user", "content": PARTS}]}, False),
    ("/v1/chat/completions", {**CHAT, "n": 2}, False),
    ("/v1/completions", {"model": "tiny", "prompt": PROMPT}, False),
    ("/arranca/", {"text": PROMPT, "timestamp": 1}, True),
]


@pytest.fixture
def traced() -> Iterator[None]:
    """Counts Python's own allocations: resident memory differs between machines."""
    tracemalloc.start()
    yield
    tracemalloc.stop()


def request_bytes(path: str, body: dict[str, Any], authorization: str, key: str | None) -> bytes:
    content = json.dumps(body).encode()
    lines = [
        f"POST {path} HTTP/1.1",
        "Host: 127.0.0.1",
        f"Authorization: {authorization}",
        "Content-Type: application/json",
        f"Content-Length: {len(content)}",
        *([f"Idempotency-Key: {key}"] if key else []),
    ]
    return "\r\n".join([*lines, "", ""]).encode() + content


def held() -> int:
    """Bytes that Python's objects take now."""
    gc.collect()
    return tracemalloc.get_traced_memory()[0]


@pytest.mark.parametrize(("path", "body", "keyed"), CASES)
async def test_a_waiting_request_holds_its_prompt_once(
    live: str,
    program: httpx.AsyncClient,
    fake: FakeClient,
    traced: None,
    path: str,
    body: dict[str, Any],
    keyed: bool,
) -> None:
    fake.script = lambda job: []
    fake.states = {"n1": node_state("n1", slots=2, running=2, status="busy")}
    authorization = program.headers["Authorization"]
    address = urlsplit(live)
    writers = []
    assert (
        await program.get("/v1/models")
    ).status_code == 200  # what the first request alone costs
    before = held()
    for number in range(REQUESTS):
        _, writer = await asyncio.open_connection(address.hostname, address.port)
        writers.append(writer)
        writer.write(request_bytes(path, body, authorization, f"key {number}" if keyed else None))
        await writer.drain()
        await until(lambda count=number + 1: len(fake.jobs) >= count * body.get("n", 1))
    factor = (held() - before) / (REQUESTS * SIZE)
    for writer in writers:
        writer.close()
        await writer.wait_closed()
    assert 0.9 < factor < MOST
