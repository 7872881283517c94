"""Branches of a conversation: edited questions, further answers, answers that go on."""

from datetime import timedelta
from importlib import import_module
from typing import Any

import httpx
import pytest
from asgiref.sync import sync_to_async
from django.apps import apps
from django.utils import timezone

from api.answers import process
from api.answers import store as answers
from api.answers.writer import AnswerWriters
from api.chat import purge
from api.chat.models import Conversation, Message, Status
from api.context import app
from api.operate.models.store import Card
from broker.wire import Delta, Failed, Finished, Job, Start
from tests.unit.api_site import FakeClient, beginning, echo, until
from tests.unit.dialogues import ask, begin, conversation, finished, sent, writer_of


async def test_an_edited_question_is_a_branch_of_its_own(
    member: httpx.AsyncClient, fake: FakeClient
) -> None:
    home = await conversation(member)
    _, answer_one = await ask(member, home, "one")
    two, answer_two = await ask(member, home, "two")
    edited, answer_edited = await ask(member, home, "2", parent=two["parent"])
    assert edited["parent"] == two["parent"] == answer_one["id"]
    assert sent(fake.jobs[-1]) == ["one", "one", "2"]

    stored = (await member.get(home)).json()
    assert [message["content"] for message in stored["messages"]] == [
        "one", "one", "two", "two", "2", "2"
    ]  # fmt: skip
    assert stored["head"] == answer_edited["id"]

    switched = await member.patch(home, json={"head": two["id"]})
    assert switched.json()["head"] == answer_two["id"]
    assert (await member.get(home)).json()["head"] == answer_two["id"]
    await ask(member, home, "three")
    assert sent(fake.jobs[-1]) == ["one", "one", "two", "two", "three"]

    root, _ = await ask(member, home, "anew", parent=None)
    assert root["parent"] is None
    assert sent(fake.jobs[-1]) == ["anew"]


async def test_another_answer_by_another_model(member: httpx.AsyncClient, fake: FakeClient) -> None:
    home = await conversation(member)
    question, first = await ask(member, home, "one")
    path = f"{home}/messages/{first['id']}/regenerate"
    turn = await member.post(path, json={"model": "big"})
    assert turn.status_code == 201, turn.text
    same, second = await finished(member, home, turn.json())
    assert same["id"] == question["id"] == second["parent"] == first["parent"]
    assert (first["model"], second["model"], fake.jobs[-1].model) == ("tiny", "big", "big")
    stored = (await member.get(home)).json()
    assert (stored["head"], stored["model"]) == (second["id"], "tiny")
    [listed] = (await member.get("/api/conversations")).json()["conversations"]
    assert listed["head"] == second["id"]
    assert [message["id"] for message in stored["messages"]] == [
        question["id"], first["id"], second["id"]
    ]  # fmt: skip
    await ask(member, home, "two")
    assert sent(fake.jobs[-1]) == ["one", "one", "two"]  # one of the answers


async def test_a_stale_view_is_told(member: httpx.AsyncClient, fake: FakeClient) -> None:
    home = await conversation(member)
    _, answer = await ask(member, home, "one", head=None)
    await ask(member, home, "two", head=answer["id"])
    stale = await member.post(f"{home}/messages", json={"content": "x", "head": answer["id"]})
    assert (stale.status_code, stale.json()["error"]["code"]) == (409, "stale_view")
    assert len((await member.get(home)).json()["messages"]) == 4


async def test_a_stopped_answer_goes_on(member: httpx.AsyncClient, fake: FakeClient) -> None:
    fake.script = lambda job: [
        Start(request_id=job.request_id, node="n2"),
        Delta(request_id=job.request_id, text="one two"),
    ]
    home, answer = await begin(member, "one two three")
    path = f"{home}/messages/{answer['id']}"
    assert (await member.post(f"{path}/continue")).status_code == 409  # it is being written
    await member.post(f"{path}/stop")
    fake.script = echo
    turn = await member.post(f"{path}/continue")
    assert turn.status_code == 201, turn.text
    _, whole = await finished(member, home, turn.json())
    assert (whole["id"], whole["content"], whole["status"]) == (
        answer["id"], "one two three", "done"
    )  # fmt: skip
    assert (whole["node"], whole["moved"]) == ("n1", 0)
    first, second = fake.jobs
    assert (second.delivered, second.messages) == ("one two", first.messages)
    assert first.request_id != second.request_id
    assert second.sampling.max_tokens is None
    complete = await member.post(f"{path}/continue")
    assert (complete.status_code, complete.json()["error"]["code"]) == (409, "not_continuable")


async def test_an_answer_that_was_cut_goes_on_beyond_its_length(
    member: httpx.AsyncClient, fake: FakeClient
) -> None:
    fake.script = lambda job: [
        Delta(request_id=job.request_id, text="one two", tokens=2),
        Finished(request_id=job.request_id, seq=1, reason="length", completion_tokens=2),
    ]
    home, answer = await begin(member, "one two three")
    await until(lambda: not writer_of(answer))
    fake.script = echo
    path = f"{home}/messages/{answer['id']}/continue"
    await app().cards.put("tiny", Card(most_tokens=2))
    refused = await member.post(path)
    assert (refused.status_code, refused.json()["error"]["code"]) == (409, "not_continuable")
    assert "at most 2 tokens" in refused.json()["error"]["message"]
    [model] = [each for each in (await member.get("/api/models")).json()["models"] if each["ready"]]
    assert model["longest_answer"] == 2
    await app().cards.put("tiny", Card())
    _, whole = await finished(member, home, (await member.post(path)).json())
    assert (whole["content"], whole["finish_reason"]) == ("one two three", "stop")
    assert fake.jobs[-1].sampling.max_tokens == 2 + 1024


async def test_a_failed_answer_is_tried_again_in_its_place(
    member: httpx.AsyncClient, fake: FakeClient
) -> None:
    fake.script = lambda job: [
        Failed(request_id=job.request_id, code="engine", message="out of memory", retryable=True)
    ]
    home, answer = await begin(member, "one")
    await until(lambda: not writer_of(answer))
    path = f"{home}/messages/{answer['id']}/continue"
    fake.connected = False
    assert (await member.post(path)).status_code == 503
    stored = (await member.get(home)).json()["messages"][1]
    assert (stored["status"], stored["error"], stored["error_code"]) == (
        "failed", "out of memory", "engine"
    )  # fmt: skip
    fake.connected, fake.script = True, echo
    _, whole = await finished(member, home, (await member.post(path)).json())
    assert (whole["id"], whole["content"], whole["error"]) == (answer["id"], "one", None)


async def test_an_answer_that_was_replied_to_stays(
    member: httpx.AsyncClient, fake: FakeClient
) -> None:
    fake.script = beginning("one")
    home, answer = await begin(member, "one two")
    await member.post(f"{home}/messages/{answer['id']}/stop")
    fake.script = echo
    await ask(member, home, "two")
    refused = await member.post(f"{home}/messages/{answer['id']}/continue")
    assert (refused.status_code, refused.json()["error"]["code"]) == (409, "not_continuable")


async def test_a_refused_branch_leaves_everything_as_it_was(
    member: httpx.AsyncClient, fake: FakeClient
) -> None:
    home = await conversation(member)
    question, answer = await ask(member, home, "one")
    before = (await member.get(home)).json()
    fake.connected = False
    for path, body in [
        (f"{home}/messages", {"content": "two"}),
        (f"{home}/messages", {"content": "1", "parent": question["parent"]}),
        (f"{home}/messages/{answer['id']}/regenerate", {"model": "big"}),
    ]:
        assert (await member.post(path, json=body)).status_code == 503
        assert (await member.get(home)).json() == before


@pytest.mark.parametrize(
    ("body", "status", "field"),
    [
        ({"content": "x", "parent": 10**15}, 404, "parent"),
        ({"content": "x", "parent": 0}, 400, "parent"),
        ({"content": "x", "parent": "1"}, 400, "parent"),
        ({"content": "x", "head": -1}, 400, "head"),
        ({"content": "x", "parent": 10**30}, 400, "parent"),
    ],
)
async def test_places_that_do_not_exist(
    member: httpx.AsyncClient, body: dict[str, Any], status: int, field: str
) -> None:
    home = await conversation(member)
    refused = await member.post(f"{home}/messages", json=body)
    assert (refused.status_code, refused.json()["error"]["field"]) == (status, field)
    missing = await member.patch(home, json={"head": 10**15})
    assert (missing.status_code, missing.json()["error"]["field"]) == (404, "head")


async def test_another_conversations_message_is_no_parent(
    member: httpx.AsyncClient, fake: FakeClient
) -> None:
    _, elsewhere = await ask(member, await conversation(member), "one")
    home = await conversation(member)
    for path, body in [
        (f"{home}/messages", {"content": "x", "parent": elsewhere["id"]}),
        (f"{home}/messages/{elsewhere['id']}/regenerate", {}),
        (f"{home}/messages/{elsewhere['id']}/continue", None),
    ]:
        assert (await member.post(path, json=body)).status_code == 404
    assert (await member.patch(home, json={"head": elsewhere["id"]})).status_code == 404


async def test_where_the_models_view_begins_follows_the_branch(
    member: httpx.AsyncClient, fake: FakeClient
) -> None:
    home = await conversation(member)
    await ask(member, home, "one")
    two, answer_two = await ask(member, home, "two")

    def cut(job: Job) -> list[Any]:
        *before, end = echo(job)
        assert isinstance(end, Finished)
        return [*before, Finished(request_id=job.request_id, reason="stop", omitted_messages=2)]

    fake.script = cut
    edited, _ = await ask(member, home, "2", parent=two["parent"])
    assert (await member.get(home)).json()["seen_from"] == edited["id"]
    shown = await member.patch(home, json={"head": answer_two["id"]})
    assert shown.json()["seen_from"] is None


async def test_rows_of_the_former_release_find_their_place(
    member: httpx.AsyncClient, fake: FakeClient
) -> None:
    """During an upgrade, a process of the former release still inserts messages."""
    home = await conversation(member)
    _, answer = await ask(member, home, "one")
    row = await Conversation.objects.aget(pk=home.rpartition("/")[2])
    old_question = await Message.objects.acreate(conversation=row, role="user", content="two")
    old_answer = await Message.objects.acreate(conversation=row, role="assistant", content="2")
    stored = (await member.get(home)).json()
    assert stored["head"] == old_answer.pk
    assert [message["parent"] for message in stored["messages"][1:]] == [
        stored["messages"][0]["id"], answer["id"], old_question.pk
    ]  # fmt: skip
    await ask(member, home, "three")
    assert sent(fake.jobs[-1]) == ["one", "one", "two", "2", "three"]
    await old_answer.arefresh_from_db()
    assert old_answer.parent_id == old_question.pk


async def test_an_answer_that_moved_says_so(member: httpx.AsyncClient, fake: FakeClient) -> None:
    def moving(job: Job) -> list[Any]:
        mine = {"request_id": job.request_id}
        return [
            Start(**mine, node="n1"),
            Delta(**mine, text="one "),
            Start(**mine, node="n2", trail=("root", "n2"), waits=(1.25,)),
            Delta(**mine, text="two"),
            Finished(**mine, reason="stop", completion_tokens=2),
        ]

    fake.script = moving
    home = await conversation(member)
    _, answer = await ask(member, home, "one two")
    assert (answer["content"], answer["node"], answer["moved"]) == ("one two", "n2", 1)
    assert answer["trail"] == [{"node": "root", "wait_ms": 1250}, {"node": "n2", "wait_ms": 0}]


async def test_a_former_writer_leaves_the_row_to_the_next_job(user: Any, fake: FakeClient) -> None:
    """An answer was stopped by another process, and goes on before its writer has noticed."""
    row = await Conversation.objects.acreate(user=user, model="tiny")
    message = await Message.objects.acreate(
        conversation=row,
        role="assistant",
        status=Status.STREAMING,
        owner=process.identity(),
        request_id="second",
        content="new",
    )
    former = await Message.objects.aget(pk=message.pk)
    former.request_id, former.content = "first", "old"
    assert not await answers.save(former)
    await message.arefresh_from_db()
    assert message.content == "new"
    await Message.objects.filter(pk=message.pk).adelete()


async def test_a_writer_that_ends_late_does_not_hide_the_next_one(
    member: httpx.AsyncClient, fake: FakeClient
) -> None:
    fake.script = beginning("one")
    home, answer = await begin(member, "one two")
    former = app().writers.get(("chat.Message", answer["id"]))
    assert former is not None
    await member.post(f"{home}/messages/{answer['id']}/stop")
    fake.script = lambda job: []
    await member.post(f"{home}/messages/{answer['id']}/continue")
    writers: AnswerWriters = app().writers
    assert former._task is not None
    writers._done(former, former._task)
    assert writer_of(answer) is not None


async def test_deleting_a_conversation_with_branches(
    member: httpx.AsyncClient, fake: FakeClient
) -> None:
    home = await conversation(member)
    for number in range(3):
        await ask(member, home, f"question {number}")
    await ask(member, home, "edited", parent=None)
    assert (await member.delete(home)).status_code == 204
    deleted = Conversation.with_deleted.filter(pk=home.rpartition("/")[2])
    await deleted.aupdate(deleted_at=timezone.now() - timedelta(hours=2))
    await purge.purge_some()
    assert not await Message.objects.filter(conversation=home.rpartition("/")[2]).aexists()


@pytest.mark.usefixtures("database")
async def test_the_migration_makes_one_branch_of_what_is_there(user: Any) -> None:
    place = import_module("api.chat.migrations.0005_place_messages").place

    def migrate() -> None:
        rows = [Conversation.objects.create(user=user, model="tiny") for _ in range(2)]
        for role in ("user", "assistant", "user"):
            for row in rows:
                Message.objects.create(conversation=row, role=role, content="x")
        place(apps, None)
        for row in rows:
            row.refresh_from_db()
            messages = list(row.messages.order_by("pk"))
            assert [each.parent_id for each in messages] == [None, messages[0].pk, messages[1].pk]
            assert [each.is_root for each in messages] == [True, False, False]
            assert row.head_id == messages[-1].pk

    await sync_to_async(migrate)()
