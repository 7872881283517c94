"""Few requests at a time come in, and none is kept out by one that waits for something else."""

import asyncio

import pytest

from api import entrance
from api.entrance import Entrance

FOREVER = 3600.0


class Visit:
    """A request that is told what to do next."""

    def __init__(self, door: Entrance) -> None:
        self.inside, self.go_on, self.leave = asyncio.Event(), asyncio.Event(), asyncio.Event()
        self.task = asyncio.create_task(self._visit(door))

    async def _visit(self, door: Entrance) -> None:
        async with door.turn():
            self.inside.set()
            await self.go_on.wait()
            entrance.submitted()
            await self.leave.wait()


@pytest.fixture
async def visits() -> list[Visit]:
    door = Entrance(most=1, seconds=FOREVER)
    return [Visit(door) for _ in range(3)]


@pytest.mark.asyncio
async def test_they_come_in_one_after_the_other_and_wait_for_their_answers_together(visits: list[Visit]) -> None:
    first, second, third = visits
    await first.inside.wait()
    assert not second.inside.is_set()
    first.go_on.set()
    await second.inside.wait()
    assert not third.inside.is_set()
    second.go_on.set()
    await third.inside.wait()
    for visit in visits:
        visit.go_on.set()
        visit.leave.set()
    await asyncio.gather(*(visit.task for visit in visits))


@pytest.mark.asyncio
async def test_one_that_leaves_without_a_job_makes_room_once(visits: list[Visit]) -> None:
    first, second, third = visits
    await first.inside.wait()
    first.task.cancel()
    await second.inside.wait()
    assert not third.inside.is_set()
    second.task.cancel()
    third.task.cancel()
    await asyncio.gather(*(visit.task for visit in visits), return_exceptions=True)


@pytest.mark.asyncio
async def test_one_that_waits_for_something_else_holds_up_nobody() -> None:
    door = Entrance(most=1, seconds=0.01)
    first, second = Visit(door), Visit(door)
    await first.inside.wait()
    await second.inside.wait()
    for visit in (first, second):
        visit.go_on.set()
        visit.leave.set()
    await asyncio.gather(first.task, second.task)
    third = Visit(door)  # what has ended twice has not made two places
    await third.inside.wait()
    third.task.cancel()
    await asyncio.gather(third.task, return_exceptions=True)


@pytest.mark.asyncio
async def test_one_that_gave_up_waiting_leaves_no_trace(visits: list[Visit]) -> None:
    first, second, third = visits
    await first.inside.wait()
    second.task.cancel()
    first.go_on.set()
    await third.inside.wait()
    for visit in visits:
        visit.task.cancel()
    await asyncio.gather(*(visit.task for visit in visits), return_exceptions=True)
