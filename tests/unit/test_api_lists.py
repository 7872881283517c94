"""The list of conversations: pages, folders, many at once, deletion and the way back, titles."""

import asyncio
from datetime import timedelta
from typing import Any

import httpx
import pytest
from django.utils import timezone

from api.accounts.models import User
from api.chat import purge
from api.chat.models import Conversation, Message
from api.chat.titles import title_from_answer
from api.context import app
from broker.wire import Delta, Finished, Job, Start
from tests.unit.api_site import FakeClient, beginning, node_state, until
from tests.unit.dialogues import begin

Json = dict[str, Any]


async def make(user: User, count: int, **fields: Any) -> list[int]:
    """Conversations, each a minute older than the one before it; their ids."""
    ids: list[int] = []
    for age in range(count):
        row = await Conversation.objects.acreate(user=user, model="tiny", title="T", **fields)
        updated = timezone.now() - timedelta(minutes=age)
        await Conversation.objects.filter(pk=row.pk).aupdate(updated=updated)
        ids.append(row.pk)
    return ids


async def page(client: httpx.AsyncClient, **query: Any) -> Json:
    """A page of the list."""
    answer = await client.get("/api/conversations", params=query)
    assert answer.status_code == 200, answer.text
    return answer.json()


def ids_of(listed: Json) -> list[int]:
    """The conversations of a page."""
    return [each["id"] for each in listed["conversations"]]


async def test_pages_have_each_conversation_once_pinned_ones_first(
    member: httpx.AsyncClient, user: User
) -> None:
    ids = await make(user, 7)
    await member.patch(f"/api/conversations/{ids[5]}", json={"pinned": True})
    order = [ids[5], *ids[:5], ids[6]]
    listed: list[int] = []
    cursor: Json = {}
    while cursor.get("cursor", "") is not None:
        part = await page(member, limit=3, **cursor)
        listed += ids_of(part)
        cursor = {"cursor": part["next"]}
    assert listed == order


async def test_a_page_goes_on_to_the_open_conversation(
    member: httpx.AsyncClient, user: User
) -> None:
    ids = await make(user, 9)
    listed = await page(member, limit=2, through=ids[6])
    assert ids_of(listed) == ids[:7]
    assert ids_of(await page(member, limit=2, cursor=listed["next"])) == ids[7:]
    assert ids_of(await page(member, limit=2, through=987654)) == ids[:2]


@pytest.mark.parametrize("cursor", ["x", "2.1.1", "1.1", "0.99999999999999999999.1"])
async def test_wrong_cursors(member: httpx.AsyncClient, cursor: str) -> None:
    assert (await member.get(f"/api/conversations?cursor={cursor}")).status_code == 400


async def test_folders_and_the_archive_are_lists_of_their_own(
    member: httpx.AsyncClient, user: User
) -> None:
    plain, trees, old = await make(user, 3)
    await member.patch(f"/api/conversations/{trees}", json={"folder": " Trees "})
    before = (await Conversation.objects.aget(pk=old)).updated
    await member.patch(f"/api/conversations/{old}", json={"archived": True, "title": "Old"})
    assert (await Conversation.objects.aget(pk=old)).updated == before
    main = await page(member)
    assert ids_of(main) == [plain]
    assert main["folders"] == [{"name": "Trees", "count": 1}]
    assert main["archived"] == 1
    assert ids_of(await page(member, folder="Trees")) == [trees]
    assert ids_of(await page(member, archived=True)) == [old]


async def test_many_at_once_and_nobody_elses(
    member: httpx.AsyncClient, staff: httpx.AsyncClient, user: User
) -> None:
    ids = await make(user, 3)
    other = (await staff.post("/api/conversations", json={})).json()["id"]

    async def bulk(action: str, **fields: Any) -> int:
        body = {"action": action, "ids": [*ids, other], **fields}
        answer = await member.post("/api/conversations/bulk", json=body)
        assert answer.status_code == 200, answer.text
        return answer.json()["count"]

    assert await bulk("move", folder="F") == 3
    assert ids_of(await page(member, folder="F")) == ids
    assert await bulk("archive") == 3
    assert await bulk("unarchive") == 3
    assert await bulk("delete") == 3
    assert ids_of(await page(member, folder="F")) == []
    assert await bulk("restore") == 3
    assert ids_of(await page(member, folder="F")) == ids
    assert (await staff.get(f"/api/conversations/{other}")).status_code == 200


async def test_a_deleted_conversation_is_gone_until_it_is_restored(
    member: httpx.AsyncClient, fake: FakeClient
) -> None:
    fake.script = beginning("so far")
    home, answer = await begin(member)
    assert (await member.delete(home)).status_code == 204
    assert (await member.delete(home)).status_code == 404
    for path in (home, f"{home}/messages/{answer['id']}/stream", f"{home}/export"):
        assert (await member.get(path)).status_code == 404
    assert (await member.post(f"{home}/messages", json={"content": "x"})).status_code == 404
    assert (await member.post(f"{home}/restore")).status_code == 200
    conversation = (await member.get(home)).json()
    assert [each["status"] for each in conversation["messages"]] == ["done", "stopped"]


async def test_purging_removes_what_can_not_be_restored_any_more(
    member: httpx.AsyncClient, user: User
) -> None:
    fresh, deleted, undeleted, temporary = await make(user, 4)
    rows = Conversation.with_deleted
    now = timezone.now()
    await rows.filter(pk=deleted).aupdate(deleted_at=now - timedelta(hours=2))
    await rows.filter(pk=undeleted).aupdate(deleted_at=now - timedelta(minutes=5))
    await rows.filter(pk=temporary).aupdate(temporary=True, updated=now - timedelta(days=2))
    assert await purge.purge_some() == 2
    left = {pk async for pk in rows.filter(user=user).values_list("pk", flat=True)}
    assert left == {fresh, undeleted}
    assert (await member.post(f"/api/conversations/{deleted}/restore")).status_code == 404


async def test_a_conversation_begins_with_its_first_message_or_not_at_all(
    member: httpx.AsyncClient, fake: FakeClient
) -> None:
    created = await member.post("/api/conversations", json={"content": "hello", "model": "tiny"})
    assert created.status_code == 201, created.text
    question, answer = created.json()["messages"]
    assert (question["content"], answer["parent"]) == ("hello", question["id"])
    assert created.json()["title"] == "hello"
    refused = await member.post("/api/conversations", json={"content": "hello", "model": "none"})
    assert refused.status_code == 404
    fake.connected = False
    away = await member.post("/api/conversations", json={"content": "hello", "model": "tiny"})
    assert away.status_code == 503
    assert ids_of(await page(member)) == [created.json()["id"]]


async def test_temporary_conversations_are_not_listed(
    member: httpx.AsyncClient, fake: FakeClient
) -> None:
    body = {"content": "hush", "temporary": True}
    created = (await member.post("/api/conversations", json=body)).json()
    assert created["temporary"]
    assert ids_of(await page(member)) == []
    assert (await member.get(f"/api/conversations/{created['id']}")).status_code == 200
    results = await member.get("/api/conversations/search", params={"q": "hush"})
    assert results.json() == {"results": []}
    assert (await member.get("/api/conversations/export")).json()["conversations"] == []


def giving(title: str) -> Any:
    """A script whose batch jobs answer with a title."""

    def script(job: Job) -> list[Any]:
        text = title if job.job_class == "batch" else "An oak is a tree."
        return [
            Delta(request_id=job.request_id, text=text),
            Finished(request_id=job.request_id, reason="stop"),
        ]

    return script


async def test_the_model_gives_a_title_in_the_batch_class(
    member: httpx.AsyncClient, fake: FakeClient
) -> None:
    fake.states["n1"] = node_state("n1", engine="transformers")
    fake.script = giving('**Title:** "About Oaks"\nand more')
    home, _ = await begin(member, "what is an oak")
    await until(lambda: len(fake.jobs) == 2)
    await asyncio.gather(*app().titles._tasks)
    assert (await member.get(home)).json()["title"] == "About Oaks"
    await member.post(f"{home}/messages", json={"content": "more"})
    await until(lambda: not app().writers.handles())
    assert [job.job_class for job in fake.jobs] == ["interactive", "batch", "interactive"]


async def test_a_title_is_of_the_answer_not_of_the_reasoning(
    member: httpx.AsyncClient, fake: FakeClient
) -> None:
    fake.states["n1"] = node_state("n1", engine="transformers")
    fake.script = lambda job: [
        Start(request_id=job.request_id, node="n1", reasoning_format="think-opened"),
        Delta(request_id=job.request_id, text=f"{'Hm. ' * 1000}</think>An oak is a tree."),
        Finished(request_id=job.request_id, reason="stop"),
    ]
    await begin(member, "what is an oak")
    await until(lambda: len(fake.jobs) == 2)
    [turn] = fake.jobs[1].messages or ()
    assert turn.content.endswith("Assistant: An oak is a tree.")


async def test_a_title_that_somebody_chose_stays(
    member: httpx.AsyncClient, fake: FakeClient
) -> None:
    fake.states["n1"] = node_state("n1", engine="transformers")
    fake.script = lambda job: []
    home, answer = await begin(member, "what is an oak")
    await member.patch(home, json={"title": "Mine"})
    fake.push(Delta(request_id=fake.jobs[0].request_id, text="A tree."))
    fake.push(Finished(request_id=fake.jobs[0].request_id, reason="stop"))
    await until(lambda: not app().writers.handles() and not app().titles._tasks)
    assert len(fake.jobs) == 1
    assert (await Message.objects.aget(pk=answer["id"])).content == "A tree."
    assert (await member.get(home)).json()["title"] == "Mine"


async def test_the_echo_engine_gives_no_titles(member: httpx.AsyncClient, fake: FakeClient) -> None:
    home, _ = await begin(member, "what is an oak")
    await until(lambda: not app().writers.handles() and not app().titles._tasks)
    assert len(fake.jobs) == 1
    assert (await member.get(home)).json()["title"] == "what is an oak"


@pytest.mark.parametrize(
    ("text", "title"),
    [
        ("Oak trees", "Oak trees"),
        ("<think>hm</think>\n\n## “Oak  trees.”", "Oak trees"),
        ("标题：橡树", "橡树"),
        ("", None),
        ("<think>never ends", None),
        ("...", None),
        ("```python\ndef f(): ...", None),
        ("x" * 61, None),
    ],
)
def test_titles_from_answers(text: str, title: str | None) -> None:
    assert title_from_answer(text) == title
