"""One cell: an instance of its own, so many API processes, so many streams, and what each process spent on them."""

import asyncio
import contextlib
import json
import os
import signal
import subprocess
import sys
import time
from asyncio.subprocess import PIPE
from collections.abc import AsyncIterator, Iterator
from dataclasses import dataclass

import msgspec
import psutil

from bench import cpu, instance, web
from bench.instance import Instance, NotStarted
from bench.streams import load
from bench.streams.load import Order, Outcome
from cli import ports
from cli.home import REPOSITORY, module_command, module_environment

NODES = 2
PROCESSES = ("api", "node", "root", "broker", "load")
_READY_SECONDS = 30.0
_END_SECONDS = 10.0
_SPARE_SECONDS = 60.0  # the load may take so much longer than its order says


@dataclass(frozen=True, slots=True)
class Settings:
    """What all cells have in common. `rate`: tokens a second and stream; `starts`: streams begun a second."""

    rate: float
    seconds: float
    starts: float
    pause: bool = False


@dataclass(frozen=True, slots=True)
class Cell:
    """What came of one cell. `cpu`: seconds by process in the window; `busy`: share of the whole machine's processors
    that were, by whomever; `stream_kb`: growth of the API's resident memory, a stream.
    """

    streams: int
    apis: int
    outcome: Outcome
    cpu: dict[str, float]
    busy: float
    stream_kb: float


def measure(streams: int, apis: int, settings: Settings) -> Cell:
    """Starts an instance and measures in it. Raises NotStarted; TimeoutError if the load cannot be finished."""
    options = ["--engine", "echo", "--nodes", str(NODES), "--token-delay", str(1 / settings.rate)]
    # Slots for all streams on each node: how they are dealt out is the dispatch's matter, not this benchmark's.
    with (
        instance.running(*options, "--slots", str(streams)) as canopy,
        _more_apis(canopy, apis - 1) as more,
    ):
        if settings.pause:
            input(f"processes: {canopy.pids()}; Enter to go on\n")
        return asyncio.run(_measure(canopy, streams, more, settings))


async def _measure(
    canopy: Instance, streams: int, more: dict[int, int], settings: Settings
) -> Cell:
    order = Order(
        ports=(canopy.port, *more),
        key=canopy.key,
        model=canopy.model,
        streams=streams,
        rate=settings.rate,
        starts=settings.starts,
        seconds=settings.seconds,
    )
    pids = canopy.pids()
    apis = [pids["api"], *more.values()]
    before = _resident(apis)
    async with (
        _load(order) as loading,
        asyncio.timeout(streams / order.starts + order.seconds + _SPARE_SECONDS),
    ):
        nodes = [pids[f"n{number}"] for number in range(1, NODES + 1)]
        groups = (apis, nodes, [pids["root"]], [pids["broker"]], [loading.pid])
        meter = cpu.Meter(dict(zip(PROCESSES, groups, strict=True)))
        await _expect(loading, load.BEGIN)
        began = meter.read()
        psutil.cpu_percent()
        await _expect(loading, load.END)
        spent, busy = cpu.spent(began, meter.read()), psutil.cpu_percent() / 100
        grown = _resident(apis) - before
        outcome = msgspec.json.decode(await _line(loading), type=Outcome)
    return Cell(streams, len(apis), outcome, spent, busy, grown / streams / 1024)


@contextlib.asynccontextmanager
async def _load(order: Order) -> AsyncIterator[asyncio.subprocess.Process]:
    command = module_command("bench.streams.load")
    process = await asyncio.create_subprocess_exec(
        *command, stdin=PIPE, stdout=PIPE, env=module_environment()
    )
    try:
        assert process.stdin is not None  # noqa: S101 - PIPE was asked for
        process.stdin.write(msgspec.json.encode(order))
        process.stdin.write_eof()
        yield process
    finally:
        with contextlib.suppress(ProcessLookupError):
            process.kill()
        await process.wait()


async def _line(loading: asyncio.subprocess.Process) -> bytes:
    """Raises NotStarted if the load ended instead."""
    assert loading.stdout is not None  # noqa: S101 - PIPE was asked for
    line = await loading.stdout.readline()
    if not line:
        raise NotStarted("the load ended before it had measured")
    return line


async def _expect(loading: asyncio.subprocess.Process, word: str) -> None:
    line = (await _line(loading)).decode().strip()
    if line != word:
        raise NotStarted(f"the load said {line!r}, not {word!r}")


def _resident(pids: list[int]) -> int:
    """Bytes."""
    return sum(psutil.Process(pid).memory_info().rss for pid in pids)


@contextlib.contextmanager
def _more_apis(canopy: Instance, count: int) -> Iterator[dict[int, int]]:
    """Further API processes of the instance, each on a port of its own: port -> pid.

    Processes that share a port get uneven shares of the connections, and a cell shall say what a process does with
    an even one.
    """
    chosen = ports.pick(count) if count else []
    started = [_start_api(canopy, port) for port in chosen]
    try:
        for port, process in zip(chosen, started, strict=True):
            asyncio.run(_until_ready(port, process))
        yield {port: process.pid for port, process in zip(chosen, started, strict=True)}
    finally:
        for process in started:
            process.terminate()
        for process in started:
            _end(process)


def _start_api(canopy: Instance, port: int) -> "subprocess.Popen[bytes]":
    shim = [
        sys.executable,
        "-S",
        "-E",
        str(REPOSITORY / "cli" / "child.py"),
        str(int(signal.SIGTERM)),
        str(os.getpid()),
    ]
    environment = {
        **module_environment(),
        "CANOPY_HOME": str(canopy.home),
        "CANOPY_AMQP_URL": canopy.amqp("api"),
        "CANOPY_MODELS": json.dumps([canopy.model]),
        "CANOPY_PORT": str(port),
    }
    command = [*shim, *module_command("api", "serve", "--port", str(port))]
    return subprocess.Popen(
        command,
        env=environment,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )


async def _until_ready(port: int, process: "subprocess.Popen[bytes]") -> None:
    """Raises NotStarted."""
    until = time.monotonic() + _READY_SECONDS
    while time.monotonic() < until and process.poll() is None:
        try:
            connection = await web.Connection.open(port)
        except OSError:
            await asyncio.sleep(0.1)
            continue
        try:
            await connection.ask(web.request("GET", "/readyz", port))
            return
        except (web.Refused, ConnectionError):
            await asyncio.sleep(0.1)
        finally:
            connection.close()
    raise NotStarted("a further API process did not become ready")


def _end(process: "subprocess.Popen[bytes]") -> None:
    try:
        process.wait(_END_SECONDS)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()
