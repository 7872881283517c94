"""Pages that follow the tree, without the pages: their streams are read and dropped."""

import asyncio
import contextlib
import json
import threading
import time
from collections.abc import Iterator
from http.client import HTTPConnection

_SECONDS = 30.0  # for all streams to begin, and for a change to be shown
_LINE_BYTES = 1 << 24  # of an event, which may be the whole tree


class Viewers:
    """So many streams of the tree, read in a thread of their own; the first one is looked at."""

    def __init__(self, port: int, key: str, count: int) -> None:
        self._port = port
        self._key = key
        self._count = count
        self._open = 0
        self._states: dict[str, str] = {}  # of nodes, as the first stream shows them
        self._changed = threading.Condition()

    @contextlib.contextmanager
    def watching(self) -> Iterator[None]:
        """All of them, for as long as the block runs. Raises TimeoutError if they are refused."""
        loop = asyncio.new_event_loop()
        task = loop.create_task(self._read_all())
        thread = threading.Thread(target=self._run, args=(loop, task), daemon=True)
        thread.start()
        try:
            with self._changed:
                if not self._changed.wait_for(lambda: self._open == self._count, _SECONDS):
                    raise TimeoutError("the streams of the tree do not begin")
            yield
        finally:
            loop.call_soon_threadsafe(task.cancel)
            thread.join()

    def ask(self, node: str, action: str, states: tuple[str, ...]) -> float:
        """Seconds until a stream shows one of `states` after `action`. Raises TimeoutError."""
        began = time.perf_counter()
        connection = HTTPConnection("127.0.0.1", self._port, timeout=_SECONDS)
        headers = {"Authorization": f"Bearer {self._key}"}
        connection.request("POST", f"/api/tree/nodes/{node}/{action}", headers=headers)
        connection.getresponse().read()
        connection.close()
        with self._changed:
            if not self._changed.wait_for(lambda: self._states.get(node) in states, _SECONDS):
                raise TimeoutError(f"{node} is not shown as {states[0]}")
        return time.perf_counter() - began

    @staticmethod
    def _run(loop: asyncio.AbstractEventLoop, task: "asyncio.Task[None]") -> None:
        with contextlib.suppress(asyncio.CancelledError):
            loop.run_until_complete(task)
        loop.close()

    async def _read_all(self) -> None:
        async with asyncio.TaskGroup() as group:
            for number in range(self._count):
                group.create_task(self._read(looked_at=number == 0))

    async def _read(self, *, looked_at: bool) -> None:
        head = (
            "GET /api/tree/stream?patches=true HTTP/1.1\r\n"
            f"Host: 127.0.0.1:{self._port}\r\nAuthorization: Bearer {self._key}\r\n\r\n"
        )
        reader, writer = await asyncio.open_connection("127.0.0.1", self._port, limit=_LINE_BYTES)
        try:
            writer.write(head.encode())
            await reader.readuntil(b"event: tree")
            with self._changed:
                self._open += 1
                self._changed.notify_all()
            while line := await reader.readline():
                if looked_at and line.startswith(b"data: "):
                    self._look(json.loads(line.removeprefix(b"data: ")))
        finally:
            writer.close()

    def _look(self, payload: object) -> None:
        nodes = payload.get("nodes", {}) if isinstance(payload, dict) else {}
        if isinstance(nodes, list):  # the whole tree
            nodes = {node["name"]: node for node in nodes}
        with self._changed:
            for name, fields in nodes.items():
                if "state" in fields:
                    self._states[name] = fields["state"]
            self._changed.notify_all()
