"""Few requests at a time come in, and none is kept out by one that waits for something else."""

import asyncio

import pytest

from api.requests.concurrency_limit import ConcurrencyLimiter, release_permit, sender_of

FOREVER = 3600.0


class Visit:
    """A request that is told what to do next."""

    def __init__(self, limiter: ConcurrencyLimiter, sender: bytes = b"somebody") -> None:
        self.sender = sender
        self.inside, self.go_on, self.leave = asyncio.Event(), asyncio.Event(), asyncio.Event()
        self.task = asyncio.create_task(self._visit(limiter))

    async def _visit(self, limiter: ConcurrencyLimiter) -> None:
        async with limiter.permit(self.sender):
            self.inside.set()
            await self.go_on.wait()
            release_permit()
            await self.leave.wait()


@pytest.fixture
async def visits() -> list[Visit]:
    limiter = ConcurrencyLimiter(limit=1, seconds=FOREVER)
    return [Visit(limiter) for _ in range(3)]


@pytest.mark.asyncio
async def test_they_come_in_one_after_the_other_and_wait_for_their_answers_together(
    visits: list[Visit],
) -> None:
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
    limiter = ConcurrencyLimiter(limit=1, seconds=0.01)
    first, second = Visit(limiter), Visit(limiter)
    await first.inside.wait()
    await second.inside.wait()
    for visit in (first, second):
        visit.go_on.set()
        visit.leave.set()
    await asyncio.gather(first.task, second.task)
    third = Visit(limiter)  # what has ended twice has not made two places
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


@pytest.mark.asyncio
async def test_a_burst_of_one_sender_waits_behind_itself() -> None:
    limiter = ConcurrencyLimiter(limit=1, seconds=FOREVER)
    burst = [Visit(limiter, b"many") for _ in range(4)]
    await burst[0].inside.wait()
    await asyncio.sleep(0)  # the others have come, too
    other = Visit(limiter, b"one")
    await asyncio.sleep(0)
    burst[0].go_on.set()
    await burst[1].inside.wait()
    burst[1].go_on.set()
    await other.inside.wait()
    assert not burst[2].inside.is_set()
    for visit in [*burst, other]:
        visit.go_on.set()
        visit.leave.set()
    await asyncio.gather(*(visit.task for visit in [*burst, other]))


@pytest.mark.asyncio
async def test_who_gives_up_while_waiting_costs_nobody_a_place() -> None:
    limiter = ConcurrencyLimiter(limit=1, seconds=FOREVER)
    first, second, third = (Visit(limiter) for _ in range(3))
    await first.inside.wait()
    await asyncio.sleep(0)
    second.task.cancel()
    await asyncio.gather(second.task, return_exceptions=True)
    first.go_on.set()
    await third.inside.wait()
    for visit in (first, third):
        visit.go_on.set()
        visit.leave.set()
    await asyncio.gather(first.task, third.task)


def test_senders_are_known_by_what_they_show() -> None:
    headers = [(b"host", b"x"), (b"authorization", b"Bearer key")]
    assert sender_of(headers, "::1") == b"Bearer key"
    assert sender_of([(b"host", b"x")], "::1") == b"::1"
