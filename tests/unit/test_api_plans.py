"""Plans: what users may ask for in a time and at once, counted by all API processes together."""

import asyncio
from collections import Counter
from collections.abc import AsyncIterator
from typing import Any

import httpx
import pytest
import pytest_asyncio
from asgiref.sync import sync_to_async
from django.utils import timezone

from api.accounts.models import Allowance, OpenStream, Plan, User
from api.chat.models import Conversation
from api.context import app
from api.errors import ApiError
from api.plans import headers, plans, store
from api.plans.limits import SECONDS, Lease, Meter, PlanLimits
from api.plans.plans import Plans, Subject
from api.plans.streams import AnswerStreams, CountedStream
from broker.announcements import Announcements
from broker.wire import Job
from tests.unit.api_site import FakeClient, beginning, make_user, until

put = sync_to_async(store.put)


def chat(**fields: Any) -> dict[str, Any]:
    return {"model": "tiny", "messages": [{"role": "user", "content": "a b"}], **fields}


async def ask(client: httpx.AsyncClient, **fields: Any) -> httpx.Response:
    return await client.post("/v1/chat/completions", json=chat(**fields))


@pytest_asyncio.fixture
async def no_plans(fake: FakeClient) -> AsyncIterator[None]:
    yield
    await Plan.objects.all().adelete()


async def give(user: User, **limits: int) -> None:
    """The user's own plan, known to this process."""
    plan = await put(f"plan of {user.username}", dict(limits))
    await User.objects.filter(pk=user.pk).aupdate(plan=plan)
    app().keys.clear()
    await app().plans.changed()


# ---- the meter


def test_a_meter_uses_what_was_granted() -> None:
    meter = Meter(100)
    assert not meter.take(1, 0)
    assert meter.wanted(1) == 1
    meter.granted(Lease(60.0, 1, 99), 0)
    assert meter.take(1, 1)
    assert not meter.take(1, 1)
    assert not meter.is_exhausted(1, 1)
    meter.granted(Lease(60.0, 0, 0), 0)
    assert meter.is_exhausted(1, 1)
    assert not meter.is_exhausted(1, 60)


def test_what_was_granted_ends_with_its_time() -> None:
    meter = Meter(100)
    meter.granted(Lease(60.0, 10, 90), 0)
    assert not meter.take(1, 60)
    meter.granted(Lease(120.0, 5, 95), 0)
    assert meter.remaining() == 100


def test_what_is_owed_is_counted_once() -> None:
    meter = Meter(100)
    meter.granted(Lease(60.0, 10, 90), 0)
    assert meter.take(10, 0)
    meter.give_back(-7)
    assert meter.owed() == 7
    meter.granted(Lease(60.0, 0, 83), 7)
    assert (meter.owed(), meter.remaining()) == (0, 83)


def test_a_higher_limit_counts_at_once() -> None:
    meter = Meter(10)
    meter.granted(Lease(60.0, 0, 0), 0)
    meter.use_limit(20)
    assert not meter.is_exhausted(1, 1)


@pytest.mark.parametrize(("seconds", "text"), [(7, "7s"), (67, "1m7s"), (86_341, "23h59m1s")])
def test_durations(seconds: int, text: str) -> None:
    assert headers.duration(seconds) == text


# ---- requests and tokens


async def test_requests_a_minute(
    program: httpx.AsyncClient, user: User, no_plans: None, fake: FakeClient
) -> None:
    await give(user, requests_per_minute=3)
    for left in (2, 1, 0):
        answer = await ask(program)
        assert answer.status_code == 200
        assert answer.headers["x-ratelimit-limit-requests"] == "3"
        assert answer.headers["x-ratelimit-remaining-requests"] == str(left)
        assert answer.headers["x-ratelimit-reset-requests"].endswith("s")
    refused = await ask(program, stream=True)
    error = refused.json()["error"]
    assert (refused.status_code, error["type"]) == (429, "rate_limit_error")
    assert error["code"] == "rate_limit_exceeded"
    assert "3 requests a minute" in error["message"]
    assert 0 < int(refused.headers["Retry-After"]) <= SECONDS["requests"]
    assert len(fake.jobs) == 3
    used = await Allowance.objects.aget(user=user, kind="requests")
    assert used.used == 3
    await Allowance.objects.filter(pk=used.pk).aupdate(started=used.started - 60)
    app().plans._meters.clear()
    assert (await ask(program)).status_code == 200


async def test_a_request_that_is_refused_otherwise_is_not_counted(
    program: httpx.AsyncClient, user: User, no_plans: None, fake: FakeClient
) -> None:
    await give(user, requests_per_minute=1, tokens_per_day=1000)
    fake.connected = False
    assert (await ask(program)).status_code == 503
    fake.connected = True
    assert (await ask(program)).status_code == 200
    assert (await ask(program)).status_code == 429


async def test_tokens_a_day_are_counted_as_used(
    program: httpx.AsyncClient, user: User, no_plans: None
) -> None:
    await give(user, tokens_per_day=300)
    answer = await ask(program)
    used = answer.json()["usage"]["total_tokens"]
    assert (await ask(program)).headers["x-ratelimit-limit-tokens"] == "300"
    await app().plans.flush()
    subject = Subject(user.pk, app().plans.of(await User.objects.aget(pk=user.pk)))
    [(_, meter)] = app().plans.meters(subject)
    assert meter.remaining() == 300 - 2 * used
    await Allowance.objects.filter(user=user).aupdate(used=299)
    meter.local, meter.left = 0, 1
    refused = await ask(program)
    assert (refused.status_code, refused.json()["error"]["code"]) == (429, "tokens_limit_exceeded")
    assert int(refused.headers["Retry-After"]) > 3600


def job(user: User, number: int) -> Job:
    return Job(
        request_id=str(number), model="tiny", reply_to="", created=0.0, user=user.username,
        prompt="a",
    )  # fmt: skip


async def test_processes_together_allow_no_more_than_the_plan(user: User) -> None:
    processes = [Plans(Announcements(f"api-{number}")) for number in range(4)]
    plans.current.set(Subject(user.pk, PlanLimits(name="small", requests_per_minute=200)))

    async def one(number: int) -> bool:
        try:
            await processes[number % 4].reserve([job(user, number)])
        except ApiError as error:
            assert error.status == 429
            return False
        return True

    allowed = await asyncio.gather(*(one(number) for number in range(300)))
    assert 190 <= sum(allowed) <= 200, "each process may hold a fiftieth that it did not use"
    stored = await Allowance.objects.aget(user=user)
    assert stored.used == 200


async def test_few_requests_need_a_query(user: User, monkeypatch: pytest.MonkeyPatch) -> None:
    book, calls = Plans(Announcements("api-1")), 0
    lease = store.lease

    async def counted(*values: Any, **named: Any) -> Lease:
        nonlocal calls
        calls += 1
        return await lease(*values, **named)

    monkeypatch.setattr(store, "lease", counted)
    plans.current.set(Subject(user.pk, PlanLimits(name="large", requests_per_minute=60_000)))
    for number in range(500):
        await book.reserve([job(user, number)])
    assert calls <= 3


async def test_without_a_plan_there_is_no_limit_and_no_query(
    program: httpx.AsyncClient, user: User
) -> None:
    answer = await ask(program)
    assert "x-ratelimit-limit-requests" not in answer.headers
    assert not await Allowance.objects.filter(user=user).aexists()


async def test_the_default_plan_is_for_all_others(
    program: httpx.AsyncClient, user: User, no_plans: None
) -> None:
    await put("standard", {"requests_per_minute": 1}, True)
    await put("other", {"requests_per_minute": 2}, True)
    await app().plans.changed()
    assert await Plan.objects.filter(is_default=True).acount() == 1
    assert (await ask(program)).headers["x-ratelimit-limit-requests"] == "2"
    await give(user, requests_per_minute=7)
    assert (await ask(program)).headers["x-ratelimit-limit-requests"] == "7"


async def test_anthropics_clients_hear_it_in_their_names(
    program: httpx.AsyncClient, user: User, no_plans: None
) -> None:
    await give(user, requests_per_minute=5)
    await ask(program)
    from django.http import HttpResponse

    plans.current.set(Subject(user.pk, app().plans.of(await User.objects.aget(pk=user.pk))))
    response = HttpResponse()
    headers.add("/v1/messages", response)
    assert response["anthropic-ratelimit-requests-remaining"] == "4"
    assert response["anthropic-ratelimit-requests-reset"].endswith("Z")


# ---- jobs, conversations, streams


async def test_jobs_say_what_the_plan_allows_and_more_are_refused(
    program: httpx.AsyncClient, user: User, no_plans: None, fake: FakeClient
) -> None:
    await give(user, jobs_running=1, jobs_waiting=2)
    fake.script = beginning("a")
    running = [asyncio.create_task(ask(program)) for _ in range(3)]
    await until(lambda: len(fake.jobs) == 3)
    assert {(each.most_running, each.most_waiting) for each in fake.jobs} == {(1, 2)}
    refused = await ask(program)
    assert (refused.status_code, refused.json()["error"]["code"]) == (429, "jobs_limit")
    assert refused.headers["Retry-After"] == "5"
    batch = asyncio.create_task(ask(program, service_tier="flex"))
    await until(lambda: len(fake.jobs) == 4)
    for task in (*running, batch):
        task.cancel()
    await asyncio.gather(*running, batch, return_exceptions=True)


async def test_conversations(member: httpx.AsyncClient, user: User, no_plans: None) -> None:
    await give(user, conversations=1)
    assert (await member.post("/api/conversations", json={})).status_code == 201
    refused = await member.post("/api/conversations", json={})
    assert (refused.status_code, refused.json()["error"]["code"]) == (429, "conversations_limit")


async def test_simultaneous_conversations(
    member: httpx.AsyncClient, user: User, no_plans: None
) -> None:
    await give(user, conversations=3)
    asked = [member.post("/api/conversations", json={}) for _ in range(8)]
    answers = await asyncio.gather(*asked)
    assert Counter(answer.status_code for answer in answers) == {201: 3, 429: 5}


async def test_imported_conversations(
    member: httpx.AsyncClient, user: User, no_plans: None
) -> None:
    await give(user, conversations=2)
    created = "2026-01-01T00:00:00Z"
    three = [{"title": f"t{number}", "created": created, "messages": []} for number in range(3)]
    address = "/api/conversations/import"
    refused = await member.post(address, json={"conversations": three})
    assert (refused.status_code, refused.json()["error"]["code"]) == (429, "conversations_limit")
    assert await Conversation.objects.filter(user=user).acount() == 0
    for _ in range(2):  # those that are there already need no room
        taken = await member.post(address, json={"conversations": three[:2]})
        assert taken.status_code == 200, taken.text


async def test_a_meter_that_owes_is_not_forgotten(
    fake: FakeClient, user: User, no_plans: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("api.plans.plans.REMEMBERED", 2)
    meters = app().plans
    owing = meters._meter((user.pk, "tokens"), 100)
    owing.give_back(-40)
    for number in range(10):
        meters._meter((10**9 + number, "tokens"), 100)
    assert (user.pk, "tokens") in meters._meters
    await meters.flush()
    row = await Allowance.objects.aget(user=user, kind="tokens")
    assert row.used == 40
    meters._meter((10**9, "requests"), 100)
    meters._meter((10**9 + 1, "requests"), 100)
    meters._meter((10**9 + 2, "requests"), 100)
    assert (user.pk, "tokens") not in meters._meters


async def test_streams_of_one_answer_at_all_processes(user: User) -> None:
    here, there = AnswerStreams(), AnswerStreams()
    plans.current.set(Subject(user.pk, PlanLimits(streams=2)))
    first = await here.open(user.pk, ("a", 1))
    await there.open(user.pk, ("a", 1))
    await here.open(user.pk, ("a", 2))
    for streams in (here, there):
        with pytest.raises(ApiError, match="in 2 streams already"):
            await streams.open(user.pk, ("a", 1))
    await first.aclose()
    await first.aclose()
    await here.open(user.pk, ("a", 1))  # without waiting for the removal
    with pytest.raises(ApiError, match="in 2 streams already"):
        await there.open(user.pk, ("a", 1))


async def test_a_burst_of_streams_at_two_processes(user: User) -> None:
    processes = AnswerStreams(), AnswerStreams()
    plans.current.set(Subject(user.pk, PlanLimits(streams=3)))
    opening = [streams.open(user.pk, ("a", 1)) for streams in processes for _ in range(6)]
    opened = await asyncio.gather(*opening, return_exceptions=True)
    assert [type(each) for each in opened].count(CountedStream) == 3


async def test_an_ended_stream_is_soon_forgotten_by_other_processes(
    user: User, monkeypatch: pytest.MonkeyPatch
) -> None:
    here, there = AnswerStreams(), AnswerStreams()
    kept = asyncio.Event()
    keep = here.keep

    async def kept_once(*, beat: bool) -> None:
        await keep(beat=beat)
        kept.set()

    monkeypatch.setattr(here, "keep", kept_once)
    plans.current.set(Subject(user.pk, PlanLimits(streams=1)))
    stream = await here.open(user.pk, ("a", 1))
    keeping = asyncio.create_task(here.keep_repeatedly())
    async with asyncio.timeout(20):
        await kept.wait()
        kept.clear()
        await stream.aclose()
        await kept.wait()
    await there.open(user.pk, ("a", 1))
    keeping.cancel()


async def test_streams_of_a_stopped_process_count_no_more(user: User) -> None:
    stopped, next_one = AnswerStreams(), AnswerStreams()
    plans.current.set(Subject(user.pk, PlanLimits(streams=1)))
    await stopped.open(user.pk, ("a", 1))
    await stopped.stop()
    await next_one.open(user.pk, ("a", 1))


async def test_streams_of_a_killed_process_count_for_a_while(user: User) -> None:
    killed, living = AnswerStreams(), AnswerStreams()
    plans.current.set(Subject(user.pk, PlanLimits(streams=2)))
    await living.open(user.pk, ("a", 1))
    await killed.open(user.pk, ("a", 1))
    long_ago = timezone.now() - 2 * store.SILENT
    await OpenStream.objects.filter(user=user).aupdate(touched=long_ago)
    await living.keep(beat=True)
    await living.open(user.pk, ("a", 1))
    with pytest.raises(ApiError, match="in 2 streams already"):
        await living.open(user.pk, ("a", 1))


async def test_a_closed_stream_counts_no_more(
    member: httpx.AsyncClient, user: User, no_plans: None
) -> None:
    await give(user, streams=1)
    begun = (await member.post("/api/conversations", json={"content": "a b"})).json()
    answer = begun["messages"][-1]["id"]
    address = f"/api/conversations/{begun['id']}/messages/{answer}/stream"
    for _ in range(3):
        assert (await member.get(address)).status_code == 200
    assert not app().answer_streams.reading


# ---- administrators


async def test_administrators_set_and_assign_plans(
    web: httpx.AsyncClient, user: User, no_plans: None
) -> None:
    from tests.unit.api_site import log_in

    await log_in(web, await make_user(is_staff=True, is_superuser=True))
    wanted = {"name": "small", "requests_per_minute": 5, "default": True}
    assert (await web.put("/api/operate/plans", json=wanted)).status_code == 204
    assign = {"user": user.username, "plan": "small"}
    assert (await web.post("/api/operate/plans/assign", json=assign)).status_code == 204
    [plan] = (await web.get("/api/operate/plans")).json()["plans"]
    assert (plan["name"], plan["requests_per_minute"], plan["users"]) == ("small", 5, 1)
    for body in ({"user": "nobody-here", "plan": "small"}, {"user": user.username, "plan": "no"}):
        answer = await web.post("/api/operate/plans/assign", json=body)
        assert answer.status_code == 404
    gone = await web.post("/api/operate/plans/remove", json={"name": "small"})
    assert gone.status_code == 204
    assert (await web.get("/api/operate/plans")).json() == {"plans": []}
    assert (await User.objects.aget(pk=user.pk)).plan_id is None


async def test_staff_may_not(staff: httpx.AsyncClient) -> None:
    assert (await staff.get("/api/operate/plans")).status_code == 403
