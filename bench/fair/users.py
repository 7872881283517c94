"""The two kinds of users: one asks now and then, the other keeps many requests in the queue."""

import asyncio
import contextlib
import random
import time
from collections.abc import AsyncIterator, Callable, Sequence
from statistics import fmean

from bench.errors import RequestFailed
from bench.report import Row
from bench.streaming import StreamClient

_CONNECTING = 64  # connections opened at a time: the listener's backlog is finite
_PATIENCE = 30.0  # seconds after the last question for those that have not begun

MakeRequest = Callable[[], bytes]


class Flood:
    """`size` requests at any time: each that ends is followed by another."""

    def __init__(self, port: int, size: int, make_request: MakeRequest) -> None:
        self.clients: list[StreamClient] = []
        self.error = ""
        self.admitted = asyncio.Event()  # every request of the first wave, or one has failed
        self._port = port
        self._size = size
        self._make_request = make_request
        self._active: set[StreamClient] = set()
        self._connecting = asyncio.Semaphore(_CONNECTING)
        self._tasks: set[asyncio.Task[None]] = set()
        self._closing = False
        self._admitted_count = 0

    @property
    def waiting(self) -> int:
        return sum(client.timeline.first is None for client in self._active)

    @contextlib.asynccontextmanager
    async def flowing(self) -> AsyncIterator[None]:
        """Sends all requests at once; gives them up at the end. Raises RequestFailed."""
        try:
            for _ in range(self._size):
                self._send_soon()
            yield
            if self.error:
                raise RequestFailed(f"a request of the flood failed: {self.error}")
        finally:
            self._closing = True
            for task in self._tasks:
                task.cancel()
            await asyncio.gather(*self._tasks, return_exceptions=True)
            for client in self._active:
                client.abort()

    def tokens_within(self, begin: float, end: float) -> int:
        return sum(client.timeline.tokens_within(begin, end) for client in self.clients)

    def begun_within(self, begin: float, end: float) -> int:
        firsts = [client.timeline.first for client in self.clients]
        return sum(first is not None and begin <= first < end for first in firsts)

    def _send_soon(self) -> None:
        task = asyncio.create_task(self._send())
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _send(self) -> None:
        request = self._make_request()
        try:
            async with self._connecting:
                client = await StreamClient.start(
                    self._port, request, self._on_end, self._on_accept
                )
        except OSError as error:
            self._fail(repr(error))
            return
        self._active.add(client)
        self.clients.append(client)

    def _on_accept(self, _client: StreamClient) -> None:
        self._admitted_count += 1
        if self._admitted_count == self._size:
            self.admitted.set()

    def _on_end(self, client: StreamClient) -> None:
        self._active.discard(client)
        if client.timeline.error:
            self._fail(client.timeline.error)
        elif not self._closing and not self.error:
            self._send_soon()

    def _fail(self, error: str) -> None:
        self.error = self.error or error
        self.admitted.set()


async def ask_at_intervals(
    port: int,
    request: bytes,
    pause: tuple[float, float],
    rng: random.Random,
    more: Callable[[int], bool],
) -> list[StreamClient]:
    """Sends requests with random pauses, answered or not, while `more(how many were sent)`.

    Those that have not ended long after the last one are given up. Raises OSError, RequestFailed.
    """
    ended = asyncio.Event()
    clients: list[StreamClient] = []

    def on_end(_client: StreamClient) -> None:
        ended.set()

    try:
        due = time.perf_counter()
        while more(len(clients)):
            clients.append(await StreamClient.start(port, request, on_end))
            due += rng.uniform(*pause)
            await asyncio.sleep(max(0.0, due - time.perf_counter()))
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(_PATIENCE):
                while any(_is_open(client) for client in clients):
                    ended.clear()
                    await ended.wait()
    finally:
        for client in clients:
            client.abort()
    for client in clients:
        if client.timeline.error:
            raise RequestFailed(f"a question of the light user failed: {client.timeline.error}")
    return clients


def _is_open(client: StreamClient) -> bool:
    return client.timeline.ended is None and not client.timeline.error


def estimate_row(clients: Sequence[StreamClient]) -> Row | None:
    """How well the first estimate each reader got matched the wait from then on, in seconds.

    Requests that have not begun are left out: their wait is not known. None without any.
    """
    errors, waits = [], []
    for client in clients:
        notice = next((n for n in client.notices if n.seconds is not None), None)
        if notice is not None and notice.seconds is not None and client.timeline.times:
            wait = client.timeline.times[0] - notice.at
            waits.append(wait)
            errors.append(notice.seconds - wait)
    if not waits:
        return None
    mean_error = fmean(abs(error) for error in errors)
    row = {"estimates": len(waits), "mean wait": fmean(waits), "mean error": mean_error}
    return row | {"bias (> 0: too long)": fmean(errors)}
