"""Calls of an endpoint without a connection: the same validation, the same answer."""

import json

import pytest

from api.accounts.models import User
from api.requests import internal, origin
from api.requests.origin import Origin
from tests.unit.api_site import FakeClient

CHAT = {"model": "tiny", "messages": [{"role": "user", "content": "one two three"}]}
PATH = "/v1/chat/completions"


async def test_the_answer_is_the_endpoints(fake: FakeClient, user: User) -> None:
    source = Origin(job_class="batch")
    reply = await internal.call(user, PATH, json.dumps(CHAT).encode(), source, seconds_left=50.0)
    assert reply.status == 200
    assert json.loads(reply.body)["choices"][0]["message"]["content"] == "one two three"
    [job] = fake.jobs
    assert (job.user, job.job_class) == (user.username, "batch")
    assert job.seconds_left is not None and job.seconds_left <= 50.0
    assert reply.request_id == job.request_id
    assert list(source.request_ids) == [job.request_id]
    assert origin.current.get() is None


async def test_what_is_wrong_is_refused_as_always(fake: FakeClient, user: User) -> None:
    body = json.dumps({**CHAT, "temperature": 9}).encode()
    reply = await internal.call(user, PATH, body, Origin())
    assert reply.status == 400
    assert json.loads(reply.body)["error"]["param"] == "temperature"
    assert not reply.is_refusal


async def test_a_refusal_can_be_told_from_a_failed_job(fake: FakeClient, user: User) -> None:
    fake.connected = False
    reply = await internal.call(user, PATH, json.dumps(CHAT).encode(), Origin())
    assert (reply.status, reply.is_refusal, reply.retry_after) == (503, True, 2.0)


@pytest.mark.parametrize("job_class", [None, "batch"])
async def test_a_key_makes_the_call_attach(fake: FakeClient, user: User, job_class: str) -> None:
    source = Origin(job_class=job_class)  # type: ignore[arg-type]
    body = json.dumps(CHAT).encode()
    replies = [
        await internal.call(user, PATH, body, source, idempotency_key=f"the same {job_class}")
        for _ in range(2)
    ]
    assert len(fake.jobs) == 1
    assert fake.jobs[0].job_class == (job_class or "interactive")
    assert replies[0].request_id == replies[1].request_id == fake.jobs[0].request_id
