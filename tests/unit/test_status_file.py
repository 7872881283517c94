"""A node's status in a file, as a container's probes read it."""

import asyncio
import threading
from pathlib import Path

import pytest

from worker import status_file


def left(folder: Path) -> list[Path]:
    return list(folder.iterdir())


async def test_the_file_follows_the_status_and_goes_with_the_node(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    written = asyncio.Event()
    statuses = iter(["starting", "idle"])

    def status() -> str:
        now = next(statuses, "")
        if not now:  # both have been written
            written.set()
        return now or "idle"

    monkeypatch.setattr(status_file, "REPEAT_SECONDS", 0.0)
    file = tmp_path / "status"
    keeping = asyncio.create_task(status_file.keep(file, status))
    async with asyncio.timeout(30):
        await written.wait()
    assert file.read_text() == "idle\n"
    keeping.cancel()
    await asyncio.gather(keeping, return_exceptions=True)
    assert left(tmp_path) == []


async def test_a_node_that_ends_while_the_file_is_written_leaves_none(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    writes, may_write = threading.Event(), threading.Event()
    replace = status_file._replace

    def slow(file: Path, text: str) -> None:
        writes.set()
        may_write.wait(5)
        replace(file, text)

    monkeypatch.setattr(status_file, "_replace", slow)
    keeping = asyncio.create_task(status_file.keep(tmp_path / "status", lambda: "idle"))
    await asyncio.to_thread(writes.wait, 5)
    keeping.cancel()
    await asyncio.sleep(0)
    may_write.set()
    await asyncio.gather(keeping, return_exceptions=True)
    assert left(tmp_path) == []


async def test_a_folder_that_is_missing_ends_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(status_file, "REPEAT_SECONDS", 0.0)
    keeping = asyncio.create_task(status_file.keep(tmp_path / "none" / "status", lambda: "idle"))
    done, _ = await asyncio.wait([keeping], timeout=0.1)
    assert not done
    keeping.cancel()
    await asyncio.gather(keeping, return_exceptions=True)
