"""The backlog is shared: a flood keeps nobody else out, batches leave interactive room."""

import asyncio
from collections import Counter
from collections.abc import Callable
from dataclasses import replace

import pytest
from django.conf import settings
from hypothesis import given
from hypothesis import strategies as st

from api.accounts.models import User
from api.context import app
from api.environment import LEAST_BACKLOG_BYTES
from api.errors import ApiError
from api.requests import admission as backlog
from api.requests import build
from api.requests.quota import CEILING, Tally, Usage, Verdict, decide
from api.requests.waiting_jobs import WaitingJobs, prompt_bytes
from broker.wire import ChatMessage, JobClass, Sampling
from tests.unit.api_site import FakeClient, echo, node_state
from tests.unit.test_api_admission import flood, job

LIMIT = 1000
LEAST = 10

# ---- the rule


class Processes:
    """Several API processes of one model: each knows its own users and the total."""

    def __init__(self, number: int) -> None:
        self.tallies = [Tally() for _ in range(number)]

    @property
    def total(self) -> int:
        return sum(each.total for each in self.tallies)

    def ask(self, user: str, process: int) -> Verdict:
        tally = self.tallies[process % len(self.tallies)]
        usage = tally.usage(user, elsewhere=self.total - tally.total)
        verdict = decide(usage, 1, LIMIT, LEAST)
        if verdict is Verdict.ADMITTED:
            tally.add(user, 1)
        return verdict

    def flood(self, user: str, jobs: int = 5 * LIMIT) -> int:
        """How many of the user's jobs are admitted, one process after the other."""
        return Counter(self.ask(user, number) for number in range(jobs))[Verdict.ADMITTED]


@pytest.mark.parametrize("processes", [1, 2, 4])
def test_one_user_fills_the_backlog_and_another_is_admitted_all_the_same(processes: int) -> None:
    site = Processes(processes)
    assert site.flood("ada") == LIMIT
    assert site.ask("ada", 0) is Verdict.USER_FULL
    shares = [site.flood(name) for name in ("ben", "cem", "dan")]
    assert shares[0] >= 0.3 * LIMIT  # a third of the limit: room for one user more is kept
    assert shares[1] >= 0.2 * LIMIT
    assert shares[2] >= 0.15 * LIMIT
    assert site.flood("ada") == 0


@pytest.mark.parametrize("processes", [1, 3])
def test_whoever_has_nothing_waiting_is_admitted_beside_many_floods(processes: int) -> None:
    site = Processes(processes)
    for number in range(20):
        site.flood(f"flood {number}")
        assert site.ask(f"guest {number}", number) is Verdict.ADMITTED


def test_a_user_whose_process_has_nothing_else_waiting_has_the_least() -> None:
    site = Processes(2)
    for _ in range(LIMIT):
        site.tallies[0].add("ada", 1)
    assert Counter(site.ask("ben", 1) for _ in range(50))[Verdict.ADMITTED] == LEAST


requests = st.lists(st.tuples(st.integers(0, 30), st.integers(0, 3), st.booleans()), max_size=400)


@given(requests, st.integers(1, 4), st.integers(1, 40), st.integers(1, 5), st.integers(1, 20))
def test_the_backlog_is_bounded_whatever_comes(
    arrivals: list[tuple[int, int, bool]], processes: int, limit: int, least: int, size: int
) -> None:
    tallies = [Tally() for _ in range(processes)]
    for number, process, leaves in arrivals:
        tally, user = tallies[process % processes], f"user {number}"
        if leaves and user in tally.users:
            tally.remove(user, tally.users[user])
            continue
        total = sum(each.total for each in tallies)
        verdict = decide(tally.usage(user, elsewhere=total - tally.total), size, limit, least)
        if verdict is Verdict.ADMITTED:
            tally.add(user, size)
        elif size <= least and user not in tally.users:
            assert verdict is Verdict.FULL
            assert total + size > CEILING * limit
    assert sum(each.total for each in tallies) <= CEILING * limit
    assert all(amount > 0 for tally in tallies for amount in tally.users.values())


@given(
    st.integers(-5, 10**13), st.integers(0, 10**13), st.integers(0, 10**13), st.integers(0, 10**6)
)
def test_no_figure_makes_the_rule_fail(total: int, here: int, mine: int, others: int) -> None:
    assert decide(Usage(total, here, mine, others), 1, LIMIT, LEAST) in Verdict


# ---- what is counted


def test_jobs_are_counted_by_model_class_and_user() -> None:
    waiting = WaitingJobs()
    first, second, batch = (
        job("ada"),
        job("ben"),
        job("ada", job_class="batch", content="模" * 1000),
    )
    for each in (first, second, second, batch):
        waiting.add(each)
    assert waiting.of_model("tiny") == len(waiting) == 3
    assert waiting.counts("tiny", "interactive").users == {"ada": 1, "ben": 1}
    assert waiting.counts("big", "interactive").total == 0
    assert waiting.bytes("batch").users == {"ada": prompt_bytes(batch)}
    assert prompt_bytes(batch) > 2000
    for each in (first, first, second, batch):
        waiting.remove(each.request_id)
    assert len(waiting) == waiting.bytes("batch").total == waiting.bytes("interactive").total == 0
    assert waiting._counts == {}


async def test_jobs_are_counted_until_they_begin_or_end(fake: FakeClient) -> None:
    fake.script = lambda job: []
    fake.trees.add("gone")
    begun, left = await app().submitter.submit(job()), await app().submitter.submit(job())
    fake.connected = False
    with pytest.raises(ApiError):
        await app().submitter.submit(job())
    fake.connected = True
    assert app().waiting_jobs.of_model("tiny") == 2
    fake.push(echo(begun.job)[0])
    assert app().waiting_jobs.of_model("tiny") == 1
    await left.aclose()
    assert len(app().waiting_jobs) == 0


# ---- through the API


@pytest.fixture
def limit(monkeypatch: pytest.MonkeyPatch, fake: FakeClient) -> Callable[..., None]:
    """Sets the backlog's limits, in front of nodes that never begin a job."""
    fake.script = lambda job: []
    fake.states = {"n1": node_state("n1", slots=2, running=2, status="busy")}

    def set_limits(**most: int) -> None:
        monkeypatch.setattr(app().backlog, "_env", replace(settings.ENV, **most))

    return set_limits


async def test_another_user_is_admitted_beside_a_thousand_waiting_jobs(
    fake: FakeClient, limit: Callable[..., None]
) -> None:
    streams, refusals = await flood(1200, user="ada")
    assert (len(streams), len(refusals)) == (1000, 200)
    assert {each.status for each in refusals} == {429}
    assert "you have 1000 jobs waiting for 'tiny'" in refusals[0].message
    others, none = await flood(300, user="ben")
    assert (len(others), none) == (300, [])
    assert (await flood(5, user="ada"))[0] == []


async def test_batch_jobs_leave_half_to_interactive_ones(
    fake: FakeClient, limit: Callable[..., None]
) -> None:
    limit(backlog=100)
    batch, refusals = await flood(100, user="ada", job_class="batch")
    assert (len(batch), len(refusals)) == (50, 50)
    assert "you have 50 batch jobs waiting" in refusals[0].message
    interactive, refusals = await flood(100, user="ada")  # beside their own batch jobs
    assert (len(interactive), refusals) == (100, [])
    assert len((await flood(10, user="ben"))[0]) == 10


@pytest.mark.parametrize("job_class", ["interactive", "batch"])
async def test_prompts_are_bounded_in_bytes(
    fake: FakeClient, limit: Callable[..., None], job_class: JobClass
) -> None:
    limit(backlog_bytes=20_000_000)
    most = 20_000_000 if job_class == "interactive" else 10_000_000
    streams, refusals = await flood(300, user="ada", job_class=job_class, content="x" * 200_000)
    assert most - 400_000 < 200_000 * len(streams) <= most
    assert "MB of prompts" in refusals[0].message
    assert (refusals[0].status, refusals[0].code) == (429, "backlog_full")
    assert 1 <= int(refusals[0].headers["Retry-After"]) <= backlog.LONGEST_RETRY_AFTER
    streams, _ = await flood(10, user="ben", job_class=job_class, content="x" * 200_000)
    assert len(streams) >= 4
    assert len((await flood(10, user="ben", job_class=job_class))[0]) == 10  # small ones


async def test_the_largest_prompt_may_always_wait(
    fake: FakeClient, limit: Callable[..., None]
) -> None:
    """Everybody's first one, also where others have filled what may wait."""
    limit(backlog_bytes=LEAST_BACKLOG_BYTES)
    largest = (
        "x" * 999_000 + "😀"
    )  # just under a million bytes as a body, and four million in memory
    for number, job_class in enumerate(("interactive", "batch", "interactive", "batch")):
        streams, _ = await flood(5, user=f"user {number}", content=largest, job_class=job_class)
        assert streams


async def test_however_many_flood_memory_is_bounded(
    fake: FakeClient, limit: Callable[..., None]
) -> None:
    limit(backlog_bytes=1_000_000)
    for number in range(30):
        await flood(5, user=f"user {number}", content="x" * 300_000)
    assert app().waiting_jobs.bytes("interactive").total <= CEILING * 1_000_000
    _, refusals = await flood(1, user="late", content="x" * 300_000)
    assert "no more may wait" in refusals[0].message


async def test_what_a_ghost_says_counts_for_nothing(
    fake: FakeClient, limit: Callable[..., None]
) -> None:
    """A state names a node that the broker has no queue of: nobody registered under that name."""
    ghost = node_state("ghost", held=1_000_000, slots=1_000_000, finished=0)
    fake.states["ghost"] = ghost
    fake.ghosts.add("ghost")
    limit(backlog=10)
    streams, refusals = await flood(20)
    assert (len(streams), len(refusals)) == (10, 10)


async def test_no_figure_of_a_node_makes_the_wait_longer_than_an_hour(
    fake: FakeClient, limit: Callable[..., None], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(backlog, "MEASURE_EVERY", 0.0)
    monkeypatch.setattr(backlog, "STALE_SECONDS", 0.0)
    limit(backlog=1)
    await flood(1)
    for finished in (0, 1):
        fake.states["n1"] = node_state(
            "n1", held=10**12, running=2, status="busy", finished=finished
        )
        _, (refusal,) = await flood(1)
        assert int(refusal.headers["Retry-After"]) <= 3600
        assert int(refusal.headers["X-Canopy-Position"]) <= backlog.MOST_HELD + 10
        await asyncio.sleep(0.01)


def test_a_job_of_many_messages_is_as_large_as_its_texts() -> None:
    messages = [ChatMessage(role="user", content="x" * 1000)] * 3
    assert (
        3000
        <= prompt_bytes(build.chat_job("tiny", messages, Sampling(), User(username="ada")))
        <= 3300
    )
