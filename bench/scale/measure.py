"""One tree, measured: at rest, then under a steady load, then with its messages counted."""

import asyncio
import os
import random
import time
from collections import Counter
from collections.abc import Coroutine, Mapping
from dataclasses import dataclass
from statistics import median
from typing import Any

import psutil

from bench import cpu
from bench.scale import load, messages, programs
from bench.scale.programs import Place, Tree
from bench.scale.shapes import Shape
from broker.client import Client

GROUPS = ("root", "inner", "leaf", "broker", "client")
_BEAT = 2.0  # seconds; a rest is measured over whole beats
_SETTLE = 0.6  # seconds: states follow what happened within a quarter of one
_WARM_UP_RATE = 50.0


@dataclass(frozen=True)
class Settings:
    """What was asked for. `rate`: jobs a second; `jobs` of them in each of `blocks`; `rest`: seconds without a job."""

    rate: float
    jobs: int
    blocks: int
    rest: float
    counted: int
    slots: int
    per_process: int
    policy: str
    seed: int


@dataclass(frozen=True)
class Measured:
    """One tree. Processor time in ms, by group: `idle` a second; `gross` and `net` (without what the tree takes at rest
    in that time) a job, of the median block. `messages` a job, net as well; `beats`: messages a second at rest.
    """

    shape: Shape
    processes: int
    idle: dict[str, float]
    gross: dict[str, float]
    net: dict[str, float]
    blocks: list[dict[str, float]]
    seconds: list[float]  # latencies of all jobs
    messages: dict[str, float]
    beats: dict[str, float]
    root_mb: float
    node_mb: float  # of the processes with nodes below the root, a node

    @property
    def total(self) -> float:
        """Net processor time of a job, ms."""
        return sum(self.net.values())


async def tree(place: Place, client: Client, shape: Shape, settings: Settings) -> Measured:
    """Grows the tree, measures and lets it leave. Raises NotStarted, load.WrongPath."""
    async with programs.tree(
        place, shape, settings.policy, settings.slots, settings.per_process
    ) as grown:
        await programs.until_grown(client, shape)
        dice = random.Random(f"{settings.seed}/{shape.root}")
        await _steady(client, shape, max(20, 2 * len(shape.leaves)), _WARM_UP_RATE, dice)
        meter = cpu.Meter({**grown.pids, "broker": [place.broker], "client": [os.getpid()]})
        idle = await _at_rest(meter, settings.rest)
        found: list[tuple[dict[str, float], dict[str, float]]] = []
        seconds: list[float] = []
        for _ in range(settings.blocks):
            with cpu.spending(meter) as spent:
                seconds += await _steady(client, shape, settings.jobs, settings.rate, dice)
            found.append((_per_job(spent, {}, settings.jobs), _per_job(spent, idle, settings.jobs)))
        memory = _memory(grown)
        beats, counted = await _messages(place, client, shape, settings, dice)
    middle = median(sum(net.values()) for _, net in found)
    gross, net = min(found, key=lambda block: abs(sum(block[1].values()) - middle))
    return Measured(
        shape,
        grown.processes,
        idle,
        gross,
        net,
        [each for _, each in found],
        seconds,
        counted,
        beats,
        *memory,
    )


async def broker_alone(place: Place, seconds: float) -> dict[str, float]:
    """Processor time in ms a second of the broker and the client without any node."""
    return await _at_rest(cpu.Meter({"broker": [place.broker], "client": [os.getpid()]}), seconds)


async def _steady(
    client: Client, shape: Shape, jobs: int, rate: float, dice: random.Random
) -> list[float]:
    """A steady load, and the time until its last effects are over."""
    seconds = await load.steady(client, shape.model, set(shape.leaves), jobs, rate, dice)
    await asyncio.sleep(_SETTLE)
    return seconds


async def _at_rest(meter: cpu.Meter, seconds: float) -> dict[str, float]:
    with cpu.spending(meter) as spent:
        await asyncio.sleep(max(_BEAT, seconds // _BEAT * _BEAT))
    return {
        name: 1000 * value / spent["seconds"] for name, value in spent.items() if name != "seconds"
    }


def _per_job(spent: Mapping[str, float], idle: Mapping[str, float], jobs: int) -> dict[str, float]:
    return {
        name: (1000 * value - idle.get(name, 0.0) * spent["seconds"]) / jobs
        for name, value in spent.items()
        if name != "seconds"
    }


async def _messages(
    place: Place, client: Client, shape: Shape, settings: Settings, dice: random.Random
) -> tuple[dict[str, float], dict[str, float]]:
    """Messages by kind: a second at rest, and a job beyond that."""
    async with messages.counted(place.address) as count:
        await asyncio.sleep(_SETTLE)  # until the firehose flows
        resting = await _counted(count, asyncio.sleep(2 * _BEAT, []))
        busy = await _counted(count, _steady(client, shape, settings.counted, settings.rate, dice))
    beats = {kind: resting[1][kind] / resting[0] for kind in messages.KINDS}
    net = {
        kind: (busy[1][kind] - beats[kind] * busy[0]) / settings.counted for kind in messages.KINDS
    }
    return beats, net


async def _counted(
    count: Counter[str], meanwhile: Coroutine[Any, Any, object]
) -> tuple[float, Counter[str]]:
    """Seconds it took, and what was counted meanwhile."""
    before, began = Counter(count), time.perf_counter()
    await meanwhile
    return time.perf_counter() - began, Counter(count) - before


def _memory(grown: Tree) -> tuple[float, float]:
    """MB that are a process's own: the root's, and of the others together, a node."""
    root = sum(_own_mb(pid) for pid in grown.pids["root"])
    others = sum(_own_mb(pid) for group in ("inner", "leaf") for pid in grown.pids[group])
    return root, others / grown.shape.nodes


def _own_mb(pid: int) -> float:
    return float(psutil.Process(pid).memory_full_info().uss) / 1e6
