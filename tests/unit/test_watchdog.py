"""The watchdog on an engine whose step is as old as the test says."""

import asyncio
from typing import cast

from worker.engines.base import Engine
from worker.watchdog import FIRST_STEP_FACTOR, Watchdog

LIMIT = 0.01


class ScriptedEngine:
    """Says one age after the other; each is said once, the last for ever."""

    name = "scripted"

    def __init__(self, *ages: float, warm: bool = True) -> None:
        self.warm = warm
        self.asked = 0
        self.all_said = asyncio.Event()
        self._ages = ages

    def stalled(self) -> float:
        age = self._ages[min(self.asked, len(self._ages) - 1)]
        self.asked += 1
        if self.asked == len(self._ages) + 5:
            self.all_said.set()
        return age


async def hang_after(engine: ScriptedEngine) -> tuple[int, float]:
    """How often the engine was asked when the hang was told, and its age."""
    hang: asyncio.Future[tuple[int, float]] = asyncio.get_running_loop().create_future()
    dog = Watchdog(
        cast(Engine, engine), LIMIT, lambda seconds: hang.set_result((engine.asked, seconds))
    )
    dog.start()
    async with asyncio.timeout(10):
        result = await hang
    await dog.stop()
    return result


async def test_an_old_step_is_told_once() -> None:
    assert await hang_after(ScriptedEngine(0.0, 9.0, 0.0, 1.0, 2.0, 3.0)) == (6, 3.0)


async def test_the_first_step_may_take_longer() -> None:
    long = LIMIT * FIRST_STEP_FACTOR
    assert await hang_after(ScriptedEngine(long, long, long, long, 2 * long, warm=False)) == (
        7,
        2 * long,
    )


async def test_short_steps_and_idling_are_no_hang() -> None:
    hangs: list[float] = []
    engine = ScriptedEngine(0.0, LIMIT, 0.0, LIMIT / 2, 5 * LIMIT, 0.0, 5 * LIMIT, 5 * LIMIT, 0.0)
    dog = Watchdog(cast(Engine, engine), LIMIT, hangs.append)
    dog.start()
    async with asyncio.timeout(10):
        await engine.all_said.wait()
    await dog.stop()
    assert not hangs


async def test_it_looks_again_after_a_restart() -> None:
    hangs: asyncio.Queue[float] = asyncio.Queue()
    engine = ScriptedEngine(1.0, 1.0, 1.0, 2.0)
    dog = Watchdog(cast(Engine, engine), LIMIT, hangs.put_nowait)
    async with asyncio.timeout(10):
        dog.start()
        assert await hangs.get() == 1.0
        dog.start()
        dog.start()  # one look at a time
        assert await hangs.get() == 2.0
        await dog.stop()
    assert engine.asked == 6
