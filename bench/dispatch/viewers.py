"""People who watch the tree: their streams without their pages."""

import contextlib
import json
import os
import socket
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from http.client import HTTPConnection, HTTPException, HTTPResponse

from bench.dispatch.contenders import RunningContender
from bench.dispatch.loop import Block
from bench.errors import RequestFailed
from bench.harness import Instance
from bench.report import Table
from bench.stats import Spread

_CHANGES = 10  # a node is drained and resumed, in turn
_INTERVAL = 0.5  # seconds between two
_SECONDS = 30.0  # until a page must show a change
_STREAM = "/api/tree/stream?patches=true"
_SHOWN = {"drain": ("draining", "drained"), "resume": ("idle", "busy")}


@contextlib.contextmanager
def watching(canopy: Instance, count: int) -> Iterator[None]:
    """So many streams, read and dropped while the block runs. Raises OSError, RequestFailed."""
    with contextlib.ExitStack() as stack:
        for _ in range(count):
            stream = stack.enter_context(_call(canopy, "GET", _STREAM))
            thread = threading.Thread(target=_drop, args=(stream,))
            thread.start()
            stack.callback(thread.join)
            stack.callback(_end, stream)
        yield


def _drop(stream: HTTPResponse) -> None:
    with contextlib.suppress(OSError, HTTPException):  # it was ended in the middle
        for _ in stream:
            pass


def _end(stream: HTTPResponse) -> None:
    """Ends the reading in another thread, which closing the socket would not."""
    socket.socket(fileno=os.dup(stream.fileno())).shutdown(socket.SHUT_RDWR)


def delays(canopy: Instance, driver: RunningContender, in_flight: int, node: str) -> Table:
    """How soon a page shows that `node` was drained or resumed, under a load. Raises OSError."""
    load = Block(in_flight, 2 * _CHANGES * _INTERVAL)
    seconds = []
    with _call(canopy, "GET", _STREAM) as stream, ThreadPoolExecutor(1) as pool:
        loading = pool.submit(driver.measure, load)
        for number in range(_CHANGES):
            action = ("drain", "resume")[number % 2]
            time.sleep(_INTERVAL)
            began = time.perf_counter()
            with _call(canopy, "POST", f"/api/tree/nodes/{node}/{action}"):
                _read_until(stream, node, _SHOWN[action])
            seconds.append(time.perf_counter() - began)
        loading.result()
    cells = Spread.of(seconds, 1000).cells("ms", "p50", "p95")
    return Table(f"until a page shows a change, {in_flight} in flight", [cells])


def _read_until(stream: HTTPResponse, node: str, states: tuple[str, ...]) -> None:
    """Reads the stream until it shows the node in one of the states. Raises RequestFailed."""
    deadline = time.perf_counter() + _SECONDS
    for line in stream:
        if time.perf_counter() > deadline:
            break
        if line.startswith(b"data: "):
            event = json.loads(line.removeprefix(b"data: "))
            nodes = event.get("nodes") if isinstance(event, dict) else None
            if isinstance(nodes, dict) and nodes.get(node, {}).get("state") in states:  # a patch
                return
    raise RequestFailed(f"{node} is not shown as {states[0]}")


@contextlib.contextmanager
def _call(canopy: Instance, method: str, path: str) -> Iterator[HTTPResponse]:
    """The response, at its headers. Raises OSError, RequestFailed."""
    connection = HTTPConnection("127.0.0.1", canopy.port, timeout=_SECONDS)
    with contextlib.closing(connection):
        connection.request(method, path, headers={"Authorization": f"Bearer {canopy.key}"})
        response = connection.getresponse()
        if response.status >= 400:
            raise RequestFailed(f"{method} {path}: {response.status} {response.reason}")
        yield response
