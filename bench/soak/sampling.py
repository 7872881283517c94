"""Samples of everything that could grow: each process's memory, files and threads, and the broker's objects."""

import asyncio
import time
from collections.abc import Iterable

import httpx
import psutil

from bench.instance import Instance
from bench.management import Management
from bench.soak.slopes import MEASURES, Life, Point
from cli.processes import ProcessRecord


class Sampler:
    """Everything sampled so far. Moments are seconds since it was made."""

    def __init__(self, canopy: Instance, broker: Management) -> None:
        self._canopy = canopy
        self._broker = broker
        self._start = time.monotonic()
        self._lives: dict[tuple[str, int], Life] = {}
        self.broker: dict[str, list[Point]] = {}
        self.missed = 0  # samples that a broker that was away did not give

    @property
    def lives(self) -> Iterable[Life]:
        """Every process that was seen."""
        return list(self._lives.values())

    async def sample_every(self, seconds: float) -> None:
        """Samples until cancelled."""
        while True:
            await self.sample()
            await asyncio.sleep(seconds)

    async def sample(self) -> None:
        """One sample of everything there is."""
        at = time.monotonic() - self._start
        for name, recorded in self._canopy.processes().items():
            if (values := measured(recorded)) is not None:
                self._lives.setdefault((name, recorded.pid), Life(name, recorded.pid)).add(
                    at, values
                )
        try:
            for figure, value in (await self._broker.totals()).items():
                self.broker.setdefault(figure, []).append((at, float(value)))
        except (httpx.HTTPError, KeyError):  # away, or up but not counting yet
            self.missed += 1


def measured(recorded: ProcessRecord) -> dict[str, float] | None:
    """The values of one process by measure; None if it is gone."""
    process = recorded.process()
    if process is None:
        return None
    try:
        with process.oneshot():
            values = (process.memory_info().rss / 1e6, process.num_fds(), process.num_threads())
    except psutil.Error:
        return None
    return dict(zip(MEASURES, map(float, values), strict=True))
