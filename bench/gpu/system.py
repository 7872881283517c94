"""The whole system under the load: an instance of its own, with a node or with several."""

import asyncio
import os
import resource
from collections.abc import Sequence
from dataclasses import dataclass

from bench import cpu, instance, report
from bench.engine import reading
from bench.engine.prompts import Prompts
from bench.engine.reading import Ask, Reading
from bench.gpu import asking
from bench.gpu.subject import Subject
from bench.instance import Instance

LOAD = "load"  # this process: it makes the requests
_WARM_ANSWER = 16  # tokens
_ROW_SECONDS = 300.0


@dataclass(frozen=True, slots=True)
class Cell:
    """What came of one number of requests. `cores`: by process, processor seconds a second of the wave."""

    reading: Reading
    seconds: float
    cores: dict[str, float]


def measure(
    subject: Subject, device: str, nodes: int, sizes: Sequence[int], ask: Ask, seed: int
) -> dict[int, Cell]:
    """By number of requests at once for each of `nodes` nodes. Raises NotStarted."""
    _allow_many_connections()
    prompts = subject.prompts(seed)
    options = [*subject.node, *placed(device, nodes), "--slots", str(max(sizes))]
    found = {}
    with instance.running(*options) as canopy:
        for size in sizes:
            cell = found[size] = asyncio.run(_measured(canopy, prompts, size * nodes, ask))
            who = f"{nodes} nodes, {nodes} x {size}" if nodes > 1 else f"system, {size}"
            report.say(
                f"{who} at once: {cell.reading.rate:.1f} tok/s, {cell.reading.failed} failed"
            )
    return found


def placed(device: str, nodes: int) -> list[str]:
    """Options of `up`: several nodes take the GPUs in turn, if it may choose."""
    return ["--nodes", str(nodes), "--device", device if nodes == 1 or device == "cpu" else "auto"]


async def _measured(canopy: Instance, prompts: Prompts, requests: int, ask: Ask) -> Cell:
    pids = {name: [process.pid] for name, process in canopy.processes().items()}
    meter = cpu.Meter({**pids, LOAD: [os.getpid()]})
    async with asyncio.timeout(_ROW_SECONDS):
        short = Ask(ask.prompt, min(ask.answer, _WARM_ANSWER))
        await asking.wave(canopy, [prompts.text(ask.prompt) for _ in range(requests)], short, meter)
        tracks, spent = await asking.wave(
            canopy, [prompts.text(ask.prompt) for _ in range(requests)], ask, meter
        )
    for error in sorted({track.error for track in tracks if track.error})[:3]:
        report.say(f"  {error}")
    seconds = spent.pop("seconds")
    return Cell(
        reading.read_wave(tracks), seconds, {name: each / seconds for name, each in spent.items()}
    )


def _allow_many_connections() -> None:
    """A request is an open file."""
    _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))
