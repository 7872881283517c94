"""What was deleted stays deleted, whoever saves it late."""

import ast
import asyncio
import threading
from collections.abc import Callable, Coroutine, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import httpx
import pytest
from asgiref.sync import sync_to_async
from django.apps import apps
from django.db import DatabaseError, connections, models

from api.accounts.models import ApiKey, LoginToken, User
from api.chat import conversation_list, turns
from api.chat.conversation_list import Deleted
from api.chat.models import Conversation, Message, Status
from api.errors import ApiError
from api.idempotency.models import KeptRequest
from api.storage.records import Record
from tests.unit.api_site import FakeClient, log_in, make_user, refresh_csrf

ROOT = Path(__file__).parents[2]
SAVES = ("save", "asave")
CHAT = {"model": "tiny", "messages": [{"role": "user", "content": "hello"}]}

# ---- the mechanism


def bare_saves(source: str) -> Iterator[int]:
    """The lines of calls of `save()` that say neither what they update nor that they insert."""
    for node in ast.walk(ast.parse(source)):
        if not isinstance(node, ast.Call) or not isinstance(node.func, ast.Attribute):
            continue
        if node.func.attr in SAVES and not node.args and not node.keywords:
            yield node.lineno


def test_no_bare_saves_in_the_api() -> None:
    """A bare save writes all fields, also those changed since the instance was loaded."""
    assert list(bare_saves("found.title = 'x'\nawait found.asave()")) == [2]
    bare = [
        f"{path}:{line}"
        for path in ROOT.glob("api/**/*.py")
        for line in bare_saves(path.read_text())
    ]
    assert bare == [], "use update(), save(update_fields=...) or save(force_insert=True)"


def test_all_models_are_records() -> None:
    ours = [model for model in apps.get_models() if model.__module__.startswith("api.")]
    assert len(ours) >= 6
    assert [model for model in ours if not issubclass(model, Record)] == []


@pytest.fixture
def rows(user: User) -> Callable[[], list[models.Model]]:
    """Makes one row of each model."""

    def make() -> list[models.Model]:
        conversation = Conversation.objects.create(user=user, model="tiny")
        return [
            Message.objects.create(conversation=conversation, role="user", content="hello"),
            conversation,
            KeptRequest.objects.create(user=user, key="k", fingerprint="f"),
            ApiKey.objects.create(user=user, name="name", digest="d"),
            LoginToken.objects.create(user=user, digest="d", expires=conversation.created),
            user,
        ]

    return make


async def test_no_row_comes_back(rows: Callable[[], list[models.Model]]) -> None:
    def check() -> None:
        for stale in rows():
            kind = type(stale)
            stale.save()  # as long as it is there
            kind._default_manager.filter(pk=stale.pk).delete()
            with pytest.raises(DatabaseError):
                stale.save()
            with pytest.raises(DatabaseError):
                stale.save(update_fields=[stale._meta.concrete_fields[1].name])
            assert not kind._default_manager.filter(pk=stale.pk).exists(), kind

    await sync_to_async(check)()


# ---- conversations


async def conversation_with_an_answer(member: httpx.AsyncClient) -> str:
    """Its address."""
    home = f"/api/conversations/{(await member.post('/api/conversations', json={})).json()['id']}"
    assert (await member.post(f"{home}/messages", json={"content": "hello"})).status_code == 201
    return home


@pytest.mark.parametrize("queries", range(12))
async def test_delete_beside_everything_else(
    member: httpx.AsyncClient, fake: FakeClient, queries: int
) -> None:
    """The others start after so many queries of the deletion, to vary where they meet."""
    home = await conversation_with_an_answer(member)

    async def later(request: Coroutine[Any, Any, httpx.Response]) -> httpx.Response:
        for _ in range(queries):
            await sync_to_async(int)()  # a turn of the thread that makes all queries
        return await request

    deleted, *others = await asyncio.gather(
        member.delete(home),
        later(member.patch(home, json={"title": "another title"})),
        later(member.post(f"{home}/messages", json={"content": "and then?"})),
        later(member.patch(home, json={"model": "big"})),
        later(member.get(home)),
    )
    assert deleted.status_code == 204
    assert {each.status_code for each in others} <= {200, 201, 404, 409}
    assert (await member.get(home)).status_code == 404
    assert (await member.get("/api/conversations")).json()["conversations"] == []
    left = Message.objects.filter(conversation=home.rpartition("/")[2], status=Status.STREAMING)
    assert not await left.aexists()


def _unfinished_of(outcomes: list[object]) -> set[int]:
    """The answers that a deletion says are to be stopped."""
    unfinished: set[int] = set()
    for outcome in outcomes:
        if isinstance(outcome, Deleted):
            unfinished.update(answer.pk for answer in outcome.unfinished)
    return unfinished


@pytest.mark.usefixtures("fake")
async def test_delete_beside_new_turns_of_other_processes(user: User) -> None:
    """Threads with connections of their own stand for API processes."""
    outcomes: list[object] = []

    def attempt(call: Callable[[], object], together: threading.Barrier) -> None:
        together.wait()
        try:
            outcomes.append(call())
        except ApiError as refusal:
            outcomes.append(refusal.status)
        except DatabaseError as error:  # a finding
            outcomes.append(error)
        finally:
            connections.close_all()

    def race() -> None:
        conversation = Conversation.objects.create(user=user, model="tiny")
        begin_turn = partial(turns._ask.func, user, conversation.pk, turns.Draft("hello"), {})
        calls = [
            partial(conversation_list.delete.func, user, [conversation.pk]),
            begin_turn,
            begin_turn,
        ]
        together = threading.Barrier(len(calls))
        threads = [threading.Thread(target=attempt, args=(call, together)) for call in calls]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert not Conversation.objects.filter(pk=conversation.pk).exists()
        streaming = Message.objects.filter(conversation=conversation.pk, status=Status.STREAMING)
        assert {each.pk for each in streaming} == _unfinished_of(outcomes[-len(calls) :])

    for _ in range(20):
        await sync_to_async(race)()
    refusals = {each for each in outcomes if not isinstance(each, turns.Turn | Deleted)}
    assert refusals <= {404, 409}


async def test_a_turn_that_was_refused_does_not_undo_a_rename(
    member: httpx.AsyncClient, fake: FakeClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    home = f"/api/conversations/{(await member.post('/api/conversations', json={})).json()['id']}"

    async def refuse(job: Any) -> None:
        assert (await member.patch(home, json={"title": "mine"})).status_code == 200
        fake.connected = False
        await FakeClient.submit(fake, job)

    monkeypatch.setattr(fake, "submit", refuse)
    assert (await member.post(f"{home}/messages", json={"content": "hello"})).status_code == 503
    unfinished = (await member.get(home)).json()
    assert (unfinished["title"], unfinished["messages"]) == ("mine", [])


# ---- accounts that were removed: their keys are believed for some seconds more


async def test_requests_of_a_removed_account(
    program: httpx.AsyncClient, user: User, fake: FakeClient
) -> None:
    assert (await program.get("/v1/models")).status_code == 200
    await User.objects.filter(pk=user.pk).adelete()
    assert (await program.post("/api/conversations", json={})).status_code == 401
    kept = await program.post("/v1/chat/completions", json=CHAT, headers={"Idempotency-Key": "k"})
    assert kept.status_code == 401
    assert fake.jobs == []


# ---- Django's admin


@pytest.fixture
async def administrator(fake: FakeClient, staff: httpx.AsyncClient) -> httpx.AsyncClient:
    """A browser that may change everything."""
    await log_in(staff, await make_user(is_staff=True, is_superuser=True))
    return staff


async def submit_form(
    client: httpx.AsyncClient, path: str, fields: dict[str, str]
) -> httpx.Response:
    await refresh_csrf(client)
    token = client.cookies["csrftoken"]
    return await client.post(path, data={**fields, "csrfmiddlewaretoken": token})


INLINE = {"messages-TOTAL_FORMS": "0", "messages-INITIAL_FORMS": "0"}


async def test_an_admin_form_that_was_open_while_its_row_was_deleted(
    administrator: httpx.AsyncClient, user: User, monkeypatch: pytest.MonkeyPatch
) -> None:
    from api.chat.admin import ConversationAdmin

    stale = await Conversation.objects.acreate(user=user, model="tiny")
    await Conversation.objects.filter(pk=stale.pk).adelete()
    monkeypatch.setattr(ConversationAdmin, "get_object", lambda *_: stale)
    page = f"/admin/chat/conversation/{stale.pk}/change/"
    answer = await submit_form(administrator, page, {"title": "late", "model": "tiny", **INLINE})
    assert answer.status_code == 404
    assert not await Conversation.objects.filter(pk=stale.pk).aexists()


async def test_an_admin_form_writes_what_was_edited_alone(
    administrator: httpx.AsyncClient, user: User, monkeypatch: pytest.MonkeyPatch
) -> None:
    from api.chat.admin import ConversationAdmin

    stale = await Conversation.objects.acreate(user=user, model="tiny")
    await Conversation.objects.filter(pk=stale.pk).aupdate(title="by its user")
    monkeypatch.setattr(ConversationAdmin, "get_object", lambda *_: stale)
    page = f"/admin/chat/conversation/{stale.pk}/change/"
    answer = await submit_form(
        administrator, page, {"title": stale.title, "model": "big", **INLINE}
    )
    assert answer.status_code == 302
    now = await Conversation.objects.aget(pk=stale.pk)
    assert (now.title, now.model) == ("by its user", "big")


async def test_the_admin_deletes(administrator: httpx.AsyncClient, user: User) -> None:
    both = [await Conversation.objects.acreate(user=user, model="tiny") for _ in range(2)]
    one = await submit_form(
        administrator, f"/admin/chat/conversation/{both[0].pk}/delete/", {"post": "yes"}
    )
    assert one.status_code == 302
    chosen = {"action": "delete_selected", "_selected_action": str(both[1].pk), "post": "yes"}
    assert (
        await submit_form(administrator, "/admin/chat/conversation/", chosen)
    ).status_code == 302
    assert not await Conversation.objects.filter(user=user).aexists()
