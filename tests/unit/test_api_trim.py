"""Freed memory goes back to the operating system."""

import asyncio

import psutil

from api.server.memory import WORTH_BYTES, malloc_trim, trim_repeatedly

PROMPTS = 4000
SIZE = 20_000


def resident() -> int:
    return psutil.Process().memory_info().rss


def burst() -> list[bytes]:
    """Many prompts that come and go; what stays is small and lies between them."""
    kept: list[bytes] = []
    prompts: list[bytes] = []
    for _ in range(PROMPTS):
        prompts.append(b"x" * SIZE)
        kept.append(b"y" * 1000)
    return kept


def test_trimming_returns_what_a_burst_has_left() -> None:
    trim = malloc_trim()
    assert trim is not None  # glibc
    kept = burst()
    before = resident()
    trim()
    assert resident() < before - PROMPTS * SIZE / 2
    assert kept


async def test_memory_is_trimmed_while_there_is_more_of_it_than_before() -> None:
    trimmed = asyncio.Event()
    loop = asyncio.get_running_loop()
    task = asyncio.create_task(
        trim_repeatedly(lambda: loop.call_soon_threadsafe(trimmed.set), look_every=0.01)
    )
    await asyncio.sleep(0)
    more = b"x" * (WORTH_BYTES * 2)
    await asyncio.wait_for(trimmed.wait(), 10)
    task.cancel()
    await asyncio.gather(task, return_exceptions=True)
    assert more
