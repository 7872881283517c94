"""Stored answers change hands: an API process that is gone, that stops, that is merely slow."""

import asyncio
from datetime import timedelta
from typing import Any

import httpx
import msgspec
import pytest
from django.utils import timezone

from api.answers import following, process, store, takeover
from api.answers import writer as writer_module
from api.chat.models import Conversation, Message, Status
from api.context import app
from api.server.asgi import application
from broker.encoding import decode
from broker.wire import Delta, Finished, Job
from tests.unit.api_site import (
    FakeClient,
    beginning,
    browser,
    echo,
    forget_answers,
    log_in,
    make_user,
    until,
)

DEAD = f"{process.identity().rsplit(':', 2)[0]}:1:1"
WORDS = "one two three four"


@pytest.fixture(autouse=True)
def in_a_hurry(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing is waited for longer than a test needs."""
    monkeypatch.setattr(takeover, "EVERY", 0.01)
    monkeypatch.setattr(following, "POLL", 0.01)
    monkeypatch.setattr(writer_module, "SAVE_EVERY", 0.01)
    monkeypatch.setattr(writer_module, "HEARTBEAT", 0.01)


async def begin(member: httpx.AsyncClient, content: str = WORDS) -> Message:
    """A turn of a new conversation; its answer as stored."""
    home = f"/api/conversations/{(await member.post('/api/conversations', json={})).json()['id']}"
    turn = await member.post(f"{home}/messages", json={"content": content})
    assert turn.status_code == 201, turn.text
    return await Message.objects.aget(pk=turn.json()["assistant_message"]["id"])


async def lose(message: Message, **changes: Any) -> None:
    """Forgets the answer, as if another process had died after storing the text."""
    writer = app().writers.get(message.handle)
    assert writer is not None
    await writer.hand_over()
    await Message.objects.filter(pk=message.pk).aupdate(
        **{"owner": DEAD, "content": "one tw", **changes}
    )


async def until_stored(message: Message, status: str) -> Message:
    """The message once it has that status."""
    async with asyncio.timeout(30):
        while (found := await Message.objects.aget(pk=message.pk)).status != status:  # noqa: ASYNC110
            await asyncio.sleep(0.01)
        return found


async def test_an_answer_of_a_dead_process_is_finished(
    member: httpx.AsyncClient, fake: FakeClient
) -> None:
    fake.script = beginning("one tw")
    message = await begin(member)
    fake.script = echo
    await lose(message, ids=[7, 8])
    found = await until_stored(message, "done")
    assert (found.content, found.finish_reason, found.completion_tokens) == (WORDS, "stop", 4)
    assert (found.owner, found.takeovers, found.job, found.ids) == (process.identity(), 1, None, [])
    first, second = fake.jobs
    assert (second.attempt, second.delivered, second.delivered_ids) == (1001, "one tw", (7, 8))
    former = msgspec.structs.replace(
        second,
        attempt=1,
        delivered="",
        delivered_ids=(),
        reply_to=first.reply_to,
        work=first.work,  # charged by each process for its part
    )
    assert former == first
    assert first.sampling.seed is not None
    assert fake.cancelled == [
        (first.request_id, 2)
    ]  # the copies of the former owner, not the next one's


@pytest.mark.parametrize("owner", ["", "nonsense", DEAD])
async def test_whom_an_answer_is_taken_from(
    member: httpx.AsyncClient, fake: FakeClient, owner: str
) -> None:
    fake.script = beginning("one")
    message = await begin(member)
    fake.script = echo
    await lose(message, owner=owner)
    await until_stored(message, "done")


@pytest.mark.parametrize(
    "owner", ["elsewhere:1:1", process.identity()], ids=["another", "this one"]
)
async def test_a_living_owner_keeps_its_answer_until_it_is_silent(
    member: httpx.AsyncClient, fake: FakeClient, owner: str
) -> None:
    fake.script = beginning("one")
    message = await begin(member)
    fake.script = echo
    await lose(message, owner=owner, touched=timezone.now())
    assert await store.orphans(Message, []) == []
    await Message.objects.filter(pk=message.pk).aupdate(
        touched=timezone.now() - timedelta(seconds=31)
    )
    await until_stored(message, "done")


async def test_only_one_process_takes_an_answer_over(user: Any, fake: FakeClient) -> None:
    fake.connected = False
    conversation = await Conversation.objects.acreate(user=user, model="tiny")
    fields = {
        "conversation": conversation,
        "role": "assistant",
        "status": Status.STREAMING,
        "owner": DEAD,
    }
    message = await Message.objects.acreate(**fields)
    seen = [await Message.objects.aget(pk=message.pk) for _ in range(5)]
    assert sum(await asyncio.gather(*(store.claim(each) for each in seen))) == 1
    assert (await Message.objects.aget(pk=message.pk)).takeovers == 1


async def test_an_answer_waits_for_the_broker_and_for_its_tree(
    member: httpx.AsyncClient, fake: FakeClient
) -> None:
    fake.script = beginning("one")
    message = await begin(member)
    fake.script, fake.trees = echo, set()
    touched = timezone.now() - timedelta(minutes=9)
    await lose(message, touched=touched)
    async with asyncio.timeout(30):
        while (found := await Message.objects.aget(pk=message.pk)).takeovers < 3:  # noqa: ASYNC110
            await asyncio.sleep(0.01)
    assert found.status == "streaming"
    fake.connected, fake.trees = False, {"tiny"}
    fake.change(fake.states["n1"])
    assert len(fake.jobs) == 1
    fake.connected = True
    assert (await until_stored(message, "done")).content == WORDS
    assert fake.jobs[-1].attempt > 3000


async def test_an_answer_whose_tree_never_comes_fails(
    member: httpx.AsyncClient, fake: FakeClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(takeover, "TREELESS", 0.0)
    fake.script = beginning("one")
    message = await begin(member)
    fake.trees = set()
    await lose(message)
    found = await until_stored(message, "failed")
    assert (found.content, found.error_code) == ("one tw", "no_node")
    assert "tiny" in (found.error or "")


async def test_an_answer_of_a_former_version_fails(
    member: httpx.AsyncClient, fake: FakeClient
) -> None:
    fake.script = beginning("one")
    message = await begin(member)
    await lose(message, job=None)
    assert "interrupted" in ((await until_stored(message, "failed")).error or "")


async def test_an_orderly_stop_hands_the_answer_to_the_next_process(
    database: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Two lives of the application, one after the other."""
    clients = [FakeClient(), FakeClient()]
    clients[0].script = beginning("one tw")
    lives = iter(clients)
    monkeypatch.setattr(application, "_make_client", lambda: next(lives))
    async with application.running(), browser() as member:
        await log_in(member, await make_user())
        message = await begin(member)
        await until(
            lambda: (
                (found := app().writers.get(message.handle)) is not None and found.record.content
            )
        )
    left = await Message.objects.aget(pk=message.pk)
    assert (left.status, left.content, left.owner) == ("streaming", "one tw", "")
    assert clients[0].cancelled == [(message.request_id, 2)]
    async with application.running():
        assert (await until_stored(message, "done")).content == WORDS
    assert clients[1].jobs[0].sampling.seed == clients[0].jobs[0].sampling.seed
    await forget_answers()


async def test_an_owner_that_was_slow_gives_way_quietly(
    member: httpx.AsyncClient, fake: FakeClient
) -> None:
    fake.script = beginning("one tw")
    message = await begin(member)
    writer = app().writers.get(message.handle)
    assert writer is not None
    reader = following.follow(message)
    assert await anext(reader) == Delta(request_id=message.request_id, text="one tw")
    await Message.objects.filter(pk=message.pk).aupdate(
        owner="elsewhere:1:1", takeovers=1, content="one"
    )
    await until(lambda: app().writers.get(message.handle) is None)
    assert fake.cancelled == [(message.request_id, 2)]
    # The new owner's text is the reader's from now on: nothing twice, nothing missing.
    await Message.objects.filter(pk=message.pk).aupdate(content="one two thr")
    assert await anext(reader) == Delta(request_id=message.request_id, text="o thr")
    await Message.objects.filter(pk=message.pk).aupdate(
        content=WORDS, status="done", finish_reason="stop"
    )
    rest = [each async for each in reader]
    assert rest[0] == Delta(request_id=message.request_id, text="ee four")
    assert isinstance(rest[1], Finished)


async def test_a_reader_whose_answer_is_taken_over_here_hears_nothing_twice(
    member: httpx.AsyncClient, fake: FakeClient
) -> None:
    """What it has read was not stored yet: it is made again, and not told again."""
    fake.script = beginning("one two th")
    message = await begin(member)
    reader = following.follow(message)
    assert await anext(reader) == Delta(request_id=message.request_id, text="one two th")
    fake.script = echo
    await lose(message, content="one")
    told = [each async for each in reader]
    assert "".join(each.text for each in told if isinstance(each, Delta)) == "ree four"
    assert isinstance(told[-1], Finished)


async def test_an_orphan_can_be_stopped(member: httpx.AsyncClient, fake: FakeClient) -> None:
    fake.script = beginning("one")
    message = await begin(member)
    fake.connected = False
    await lose(message)
    path = f"/api/conversations/{message.conversation_id}/messages/{message.pk}/stop"
    assert (await member.post(path)).status_code == 204
    found = await Message.objects.aget(pk=message.pk)
    assert (found.status, found.content, found.job) == ("stopped", "one tw", None)
    fake.connected = True
    assert await store.orphans(Message, []) == []


async def test_what_is_stored_is_what_another_process_needs(
    member: httpx.AsyncClient, fake: FakeClient
) -> None:
    fake.script = lambda job: [
        Delta(request_id=job.request_id, text="one", ids=(4,)),
        Delta(request_id=job.request_id, seq=1, text=" two", ids=(5, 6)),
    ]
    message = await begin(member)
    async with asyncio.timeout(30):
        while not (saved := await Message.objects.aget(pk=message.pk)).content:  # noqa: ASYNC110
            await asyncio.sleep(0.01)
    assert (saved.content, saved.ids, saved.attempt) == ("one two", [4, 5, 6], 1)
    stored = decode(bytes(saved.job or b""), Job)
    assert stored.messages == fake.jobs[0].messages
    assert msgspec.structs.replace(stored.sampling, defaulted=()) == fake.jobs[0].sampling
