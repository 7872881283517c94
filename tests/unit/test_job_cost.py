"""What a job costs nodes, counted in calls: the load of the machine does not change those."""

import sys
from collections import Counter
from collections.abc import Iterator
from types import FrameType

import pytest
import structlog

from tests.unit.cluster import Cluster, read, until

JOBS = 20
# On a busy machine, heartbeats and reports to waiting readers fall into many rounds: one without
# them is looked for.
MOST_ROUNDS = 30
# Of functions in the rooms below, for one job at a root and a node. 178 at present, 7 of which keep
# running totals of the children, so that no decision looks at all of them.
MOST_CALLS = 182
ROOMS = ("/worker/", "/topology/", "/broker/node.py", "/structlog/")
FOR_NOBODY = ("job_spans.py", "drill_watch.py", "job_list.py", "tracing.py")


@pytest.fixture(autouse=True)
def usual_log() -> Iterator[None]:
    """Debug lines are not written."""
    before = structlog.get_config()
    structlog.configure(wrapper_class=structlog.make_filtering_bound_logger("info"))
    yield
    structlog.configure(**before)


async def _answer_jobs(cluster: Cluster, prefix: str) -> None:
    for number in range(JOBS):
        request_id = f"{prefix}{number}"
        stream = await cluster.ask(request_id)
        await until(lambda: cluster.where(request_id))  # noqa: B023
        cluster.engine("n1").finish(request_id)
        await read(stream)


async def test_a_job_costs_nothing_for_traces_drills_and_lists_that_nobody_uses() -> None:
    rounds: list[Counter[str]] = []

    def count(frame: FrameType, event: str, _argument: object) -> None:
        file = frame.f_code.co_filename
        if event == "call" and any(room in file for room in (*ROOMS, *FOR_NOBODY)):
            rounds[-1][file.rpartition("/")[2]] += 1

    async with Cluster() as cluster:
        await cluster.add("root")
        await cluster.add("n1", "root")
        await _answer_jobs(cluster, "warm")
        for number in range(MOST_ROUNDS):
            rounds.append(Counter())
            sys.setprofile(count)
            try:
                await _answer_jobs(cluster, f"job{number}-")
            finally:
                sys.setprofile(None)
            if rounds[-1].total() / JOBS < MOST_CALLS:
                break
    calls = min(rounds, key=Counter.total)
    assert not [file for file in FOR_NOBODY if calls[file]]
    assert calls.total() / JOBS < MOST_CALLS, calls
