"""What jobs cost: in the long run, the tokens that they used."""

from collections import defaultdict
from typing import Any

import httpx
import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from api.accounts.models import User
from api.context import app
from api.errors import ApiError
from api.requests import build
from api.requests.accounting import (
    LEAST_COST,
    UNKNOWN_ANSWER,
    WINDOW,
    Charge,
    TokenAccounting,
    prompt_tokens,
)
from broker.wire import ChatMessage, Delta, Failed, Finished, Job, JobClass, Sampling, Start
from tests.unit.api_site import FakeClient, make_user, until


def job(
    characters: int = 40,
    max_tokens: int | None = None,
    user: str = "ada",
    job_class: JobClass = "interactive",
) -> Job:
    return Job(
        request_id="r",
        model="m",
        reply_to="",
        created=0.0,
        prompt="x" * characters,
        sampling=Sampling(max_tokens=max_tokens),
        user=user,
        job_class=job_class,
    )


# ---- the rule

PROMPT = 10.0  # tokens of `job()`


def test_a_prompt_is_at_least_a_token() -> None:
    assert prompt_tokens(job(0)) == 1.0
    assert prompt_tokens(job(40)) == PROMPT
    turns = (ChatMessage(role="system", content="abcd"), ChatMessage(role="user", content="abcdef"))
    dialogue = Job(request_id="r", model="m", reply_to="", created=0.0, messages=turns)
    assert prompt_tokens(dialogue) == 2.5


def test_without_history_an_ordinary_answer_is_expected() -> None:
    assert TokenAccounting().charge(job()).cost == PROMPT + UNKNOWN_ANSWER
    assert TokenAccounting().charge(job(max_tokens=7)).cost == PROMPT + 7
    assert TokenAccounting().charge(job(max_tokens=10_000)).cost == PROMPT + UNKNOWN_ANSWER


def test_what_a_users_answers_took_is_expected_of_the_next() -> None:
    accounting = TokenAccounting()
    for answer in (10, 30):
        accounting.settle(accounting.charge(job()), PROMPT + answer, answer)
    assert accounting.charge(job()).expected == PROMPT + 20
    assert accounting.charge(job(max_tokens=5)).expected == PROMPT + 5


def test_users_and_their_classes_are_expected_to_be_like_everybody_until_they_are_known() -> None:
    accounting = TokenAccounting()
    accounting.settle(accounting.charge(job(user="ada")), PROMPT + 10, 10)
    assert accounting.charge(job(user="ada", job_class="batch")).expected == PROMPT + 10
    first = accounting.charge(job(user="bob"))
    assert first.expected == PROMPT + 10
    accounting.settle(first, PROMPT + 30, 30)
    expected = {
        user: accounting.charge(job(user=user)).expected - PROMPT for user in ("ada", "bob", "eve")
    }
    assert expected == {"ada": 10, "bob": 30, "eve": 20}


def test_a_user_who_changes_is_noticed() -> None:
    accounting = TokenAccounting()
    for answer in [1000] * 500 + [10] * (5 * WINDOW):
        accounting.settle(accounting.charge(job()), PROMPT + answer, answer)
    assert accounting.charge(job()).expected == pytest.approx(PROMPT + 10, abs=10)


def test_what_was_not_charged_is_charged_with_the_next_job_and_once() -> None:
    accounting = TokenAccounting()
    first = accounting.charge(job(max_tokens=10))
    accounting.settle(first, PROMPT + 5000, 5000)
    second = accounting.charge(job(max_tokens=10))
    assert (first.cost, second.cost) == (PROMPT + 10, PROMPT + 10 + 4990)
    assert accounting.charge(job(max_tokens=10)).cost == PROMPT + 10


def test_what_was_charged_too_much_is_given_back_over_as_many_jobs_as_it_takes() -> None:
    accounting = TokenAccounting()
    accounting.settle(
        accounting.charge(job(max_tokens=100)), PROMPT, 0
    )  # 100 too much; the next are expected to take PROMPT
    charges = []
    for _ in range(20):
        charge = accounting.charge(job(max_tokens=100))
        accounting.settle(charge, PROMPT, 0)
        charges.append(charge.cost)
    assert charges[:11] == [LEAST_COST] * 11  # each gives back 9
    assert charges[11:] == [PROMPT - 1] + [PROMPT] * 8


def test_a_refused_job_leaves_no_trace() -> None:
    accounting = TokenAccounting()
    accounting.settle(accounting.charge(job()), 5000.0, 4990)
    before = accounting.account(("ada", "interactive")).deficit
    accounting.refund(accounting.charge(job()))
    assert accounting.account(("ada", "interactive")).deficit == before


def test_users_not_seen_for_long_are_forgotten() -> None:
    accounting = TokenAccounting(most=2)
    for user, answer in (("ada", 10), ("bob", 20), ("ada", 10), ("eve", 40)):
        accounting.settle(accounting.charge(job(user=user)), PROMPT + answer, answer)
    assert accounting.charge(job(user="ada")).expected == PROMPT + 10
    assert (
        accounting.charge(job(user="bob")).expected == PROMPT + 20
    )  # in place of eve; as everybody, who took 80 in 4
    assert accounting.charge(job(user="eve")).expected == PROMPT + 20


USERS = ("ada", "bob")
steps = st.lists(
    st.tuples(
        st.sampled_from(["submit", "submit", "end", "end", "refuse"]),
        st.sampled_from(USERS),
        st.integers(0, 20_000),  # characters of the prompt, or tokens of the answer
        st.none() | st.integers(1, 5000),
        st.integers(0, 10),  # which of the open jobs
    ),
    max_size=60,
)


@given(steps)
def test_charges_add_up_to_the_tokens_worked(
    history: list[tuple[str, str, int, int | None, int]],
) -> None:
    accounting = TokenAccounting()
    open_jobs: defaultdict[str, list[Charge]] = defaultdict(list)
    charged: defaultdict[str, float] = defaultdict(float)
    worked: defaultdict[str, float] = defaultdict(float)

    def balance(user: str) -> float:
        return charged[user] + accounting.account((user, "interactive")).deficit

    def end(user: str, which: int, answer: int) -> None:
        charge = open_jobs[user].pop(which % len(open_jobs[user]))
        ran = answer % 3 > 0
        tokens = charge.prompt + answer if ran else 0.0
        worked[user] += tokens
        accounting.settle(charge, tokens, answer if ran else None)

    for what, user, size, limit, which in history:
        if what == "submit":
            charge = accounting.charge(job(size, limit, user))
            assert charge.cost >= LEAST_COST
            open_jobs[user].append(charge)
            charged[user] += charge.cost
        elif what == "refuse":
            accounting.refund(accounting.charge(job(size, limit, user)))
        elif open_jobs[user]:
            end(user, which, size)
        expected = sum(each.expected for each in open_jobs[user])
        assert balance(user) == pytest.approx(worked[user] + expected, abs=1e-3)
    for user in USERS:
        while open_jobs[user]:
            end(user, 0, 100)
        assert balance(user) == pytest.approx(worked[user], abs=1e-3)


# ---- the jobs


CHAT = {"model": "tiny", "max_tokens": 5, "messages": [{"role": "user", "content": "x" * 40}]}


def deficit(user: User, job_class: JobClass = "interactive") -> float:
    return app().accounting.account((user.username, job_class)).deficit


async def test_a_job_is_charged_and_settled_at_its_end(
    program: httpx.AsyncClient, user: User, fake: FakeClient
) -> None:
    assert (await program.post("/v1/chat/completions", json=CHAT)).status_code == 200
    assert fake.jobs[0].work == PROMPT + 5
    assert deficit(user) == 3 + 1 - (PROMPT + 5)  # the echo has read 3 tokens and said 1
    assert (
        await program.post("/v1/chat/completions", json={**CHAT, "service_tier": "flex"})
    ).status_code == 200
    assert fake.jobs[1].work == PROMPT + 1  # no deficit in this class
    assert (await program.post("/v1/chat/completions", json=CHAT)).status_code == 200
    assert fake.jobs[2].work == LEAST_COST


async def submitted(fake: FakeClient, user: User, **sampling: Any) -> tuple[Any, Job]:
    fake.script = lambda job: []
    messages = [ChatMessage(role="user", content="x" * 40)]
    stream = await app().submitter.submit(
        build.chat_job("tiny", messages, Sampling(max_tokens=5), user)
    )
    return stream, fake.jobs[-1]


async def test_a_job_that_never_ran_has_cost_nothing(user: User, fake: FakeClient) -> None:
    stream, job = await submitted(fake, user)
    await stream.aclose()
    await stream.aclose()
    assert deficit(user) == -job.work


async def test_what_was_delivered_until_its_reader_left_has_been_worked(
    user: User, fake: FakeClient
) -> None:
    stream, job = await submitted(fake, user)
    fake.push(Start(request_id=job.request_id, node="n1"))
    fake.push(Delta(request_id=job.request_id, text="a b", tokens=2))
    await stream.aclose()
    assert deficit(user) == PROMPT + 2 - job.work


async def test_what_a_failed_job_delivered_has_been_worked(user: User, fake: FakeClient) -> None:
    _, job = await submitted(fake, user)
    fake.push(Start(request_id=job.request_id, node="n1"))
    fake.push(Delta(request_id=job.request_id, text="a b", tokens=2))
    fake.push(Failed(request_id=job.request_id, code="engine", message="broken"))
    assert deficit(user) == PROMPT + 2 - job.work


async def test_the_next_job_pays_for_a_long_answer(user: User, fake: FakeClient) -> None:
    _, job = await submitted(fake, user)
    fake.push(Start(request_id=job.request_id, node="n1"))
    fake.push(
        Finished(request_id=job.request_id, reason="stop", prompt_tokens=12, completion_tokens=900)
    )
    _, next_job = await submitted(fake, user)
    assert next_job.work == PROMPT + 5 + (912 - job.work)


async def test_a_job_that_the_broker_refuses_is_not_charged(user: User, fake: FakeClient) -> None:
    fake.connected = False
    with pytest.raises(ApiError):
        await submitted(fake, user)
    assert deficit(user) == 0.0


async def test_a_users_share_travels_with_their_jobs(
    program: httpx.AsyncClient, member: httpx.AsyncClient, user: User, fake: FakeClient
) -> None:
    user.share = 2.5
    await user.asave()
    conversation = (await member.post("/api/conversations", json={})).json()["id"]
    await member.post(f"/api/conversations/{conversation}/messages", json={"content": "hello"})
    await program.post("/v1/chat/completions", json=CHAT)
    await program.post("/v1/completions", json={"model": "tiny", "prompt": "hello"})
    await program.post("/arranca/", json={"text": "hello", "timestamp": 1})
    assert [(each.share, each.job_class) for each in fake.jobs] == [(2.5, "interactive")] * 4
    other = await make_user()
    await submitted(fake, other)
    assert fake.jobs[-1].share == 1.0


async def test_an_answer_that_is_taken_over_is_charged_for_the_rest(
    user: User, fake: FakeClient
) -> None:
    fake.script = lambda job: []
    messages = [ChatMessage(role="user", content="x" * 40)]
    whole = build.chat_job("tiny", messages, Sampling(max_tokens=50), user)
    await app().submitter.publish(
        msgspec.structs.replace(whole, delivered="a b", delivered_ids=(1, 2))
    )
    job = fake.jobs[-1]
    fake.push(Start(request_id=job.request_id, node="n1"))
    fake.push(
        Finished(request_id=job.request_id, reason="stop", prompt_tokens=10, completion_tokens=7)
    )
    assert deficit(user) == PROMPT + 5 - job.work
    await until(lambda: not fake.streams)
