"""What waiting prompts cost: all processes but the broker together, as a multiple of the prompts' size."""

import asyncio
import json
from collections.abc import Iterator

import httpx
import psutil
import pytest

from cli.home import Home
from tests.instance import Instance, running

PROMPTS = 400
LETTERS = 200_000
MOST_FACTOR = 3.0  # API and root hold the prompts, once each; the rest is the request itself
MOST_KEPT = 1.0  # of their size, when all are answered
SETTLE_SECONDS = 10.0


@pytest.fixture(scope="module")
def instance(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Instance]:
    """root -> n1 with one slot that a slow answer holds."""
    options = ["--engine", "echo", "--nodes", "1", "--slots", "1", "--token-delay", "0.2"]
    with running(tmp_path_factory.mktemp("memory"), *options) as instance:
        yield instance


def memory(instance: Instance) -> dict[str, int]:
    """Resident bytes by process."""
    found = {}
    for process in json.loads(Home(instance.home).processes_file.read_text()):
        if process["name"] != "broker":
            found[process["name"]] = _resident(psutil.Process(process["pid"]))
    return found


def _resident(process: psutil.Process) -> int:
    """With its children: a process may be started through a shim."""
    return sum(each.memory_info().rss for each in [process, *process.children(recursive=True)])


async def _ask(client: httpx.AsyncClient, words: int, text: str) -> int:
    body = {"model": "echo", "max_tokens": words, "messages": [{"role": "user", "content": text}]}
    return (await client.post("/v1/chat/completions", json=body)).status_code


async def test_waiting_prompts_cost_a_small_multiple_of_their_size(instance: Instance) -> None:
    text = "memory " * (LETTERS // 7)
    headers = {"Authorization": f"Bearer {instance.key()}"}
    limits = httpx.Limits(max_connections=PROMPTS + 10)
    async with httpx.AsyncClient(base_url=instance.url, headers=headers, limits=limits, timeout=300) as client:
        await _ask(client, 1, text)
        before = memory(instance)
        holder = asyncio.create_task(_ask(client, 300, text))
        waiting = [asyncio.create_task(_ask(client, 1, text)) for _ in range(PROMPTS)]
        await asyncio.sleep(SETTLE_SECONDS)  # all are read, published and taken by the root
        during = memory(instance)
        for task in (holder, *waiting):
            task.cancel()
        await asyncio.gather(holder, *waiting, return_exceptions=True)
        await asyncio.sleep(SETTLE_SECONDS)
        after = memory(instance)
    size = PROMPTS * LETTERS
    grown = {name: round((during[name] - before[name]) / size, 2) for name in before}
    kept = {name: round((after[name] - before[name]) / size, 2) for name in before}
    print(f"\nof {size / 1e6:.0f} MB of prompts: waiting {grown}, after {kept}")
    assert sum(grown.values()) < MOST_FACTOR
    assert sum(kept.values()) < MOST_KEPT
