"""A list takes as many queries for 60 rows as for 3, and none reads a whole table that grows."""

import itertools
import re
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from datetime import timedelta
from typing import Any

import httpx
import pytest
from asgiref.sync import sync_to_async
from django.contrib import admin
from django.db import connection
from django.db.backends.utils import CursorWrapper
from django.utils import timezone

from api.accounts.models import ApiKey, Login, Plan, User
from api.batches.models import Batch
from api.chat.models import Conversation, Message, Role, Share
from api.feedback.models import Feedback
from api.files.models import StoredFile
from api.idempotency.models import KeptRequest
from api.jobs.models import StoredJob
from api.operate.audit.models import AuditEntry
from api.operate.dead.models import DeadReplay
from api.operate.history.models import UsageRow
from api.preferences.models import Preset
from api.push.models import PushSubscription
from api.responses.models import StoredResponse
from tests.unit.api_site import FakeClient, browser, log_in, make_user

FEW, MANY = 3, 60
LISTS = [
    "/api/me",
    "/api/conversations",
    "/api/conversations?archived=true",
    "/api/conversations?folder=work",
    "/api/conversations/{conversation}",
    "/api/conversations/{conversation}/export",
    "/api/conversations/search?q=maple",
    "/api/shares",
    "/api/feedback",
    "/api/feedback?conversation={conversation}",
    "/api/presets",
    "/api/push",
    "/api/account/keys",
    "/api/account/sessions",
    "/api/account/usage",
    "/v1/models",
    "/v1/files",
    "/v1/files?purpose=batch&order=asc",
    "/v1/batches",
    "/v1/jobs",
    "/v1/jobs?status=completed&model=tiny&created_after=5",
    "/v1/responses/{response}",
    "/v1/responses/{response}/input_items",
    "/api/operate/audit",
    "/api/operate/audit?who=nobody&since=2020-01-01T00:00:00Z",
    "/api/operate/dead/replays",
    "/api/operate/line",
    "/api/operate/plans",
    "/api/operate/usage?by=user&by=key&by=model&by=day",
]
PAGES = [f"/admin/{kind._meta.app_label}/{kind._meta.model_name}/" for kind in admin.site._registry]
# Of the others, lists read a bounded number of rows: the audit log's page is the newest by row,
# replays are at most 100, plans are a few for the whole instance.
GROWING = (
    ApiKey,
    Batch,
    Conversation,
    Feedback,
    KeptRequest,
    Login,
    Message,
    Preset,
    PushSubscription,
    Share,
    StoredFile,
    StoredJob,
    StoredResponse,
    UsageRow,
    User,
)
_numbers = itertools.count()
_watching: ContextVar[bool] = ContextVar("watching", default=False)


@dataclass(frozen=True, slots=True)
class Query:
    """A SELECT as the database got it."""

    sql: str
    values: Any


@contextmanager
def watched() -> Iterator[list[Query]]:
    """The SELECTs of the caller's requests, whatever thread they run in; no background task's."""
    queries: list[Query] = []
    execute = CursorWrapper.execute

    def noted(self: CursorWrapper, sql: Any, params: Any = None) -> Any:
        if _watching.get() and str(sql).lstrip().startswith(("SELECT", "WITH")):
            queries.append(Query(str(sql), params))
        return execute(self, sql, params)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(CursorWrapper, "execute", noted)
        token = _watching.set(True)
        yield queries
        _watching.reset(token)


@sync_to_async
def more_rows(user: User, conversation: Conversation, response: StoredResponse, count: int) -> None:
    """So many rows of every kind that a list shows."""
    for _ in range(count):
        _more_of_the_chat(user, conversation)
        _more_of_programs(user)
        _more_of_the_instance(user)
    response.input = [*response.input, *[_item() for _ in range(count)]]
    response.save()


def _item() -> dict[str, Any]:
    content = [{"type": "input_text", "text": "maple"}]
    return {"type": "message", "id": f"msg_{next(_numbers)}", "role": "user", "content": content}


def _more_of_the_chat(user: User, conversation: Conversation) -> None:
    number = next(_numbers)
    fields = {"user": user, "model": "tiny", "title": "maple"}
    for changes in ({}, {"folder": "work"}, {"archived": True}):
        Conversation.objects.create(**fields, **changes)
    question = _message(conversation, Role.USER)
    answer = _message(conversation, Role.ASSISTANT, parent=question)
    Conversation.objects.filter(pk=conversation.pk).update(head=answer)
    Feedback.objects.create(message=answer, good=True)
    Share.objects.create(conversation=conversation, digest=f"{number:064}", content="{}")
    Preset.objects.create(user=user, name=f"preset {number}")
    PushSubscription.objects.create(user=user, endpoint=f"https://push.test/{number}")


def _message(conversation: Conversation, role: str, **fields: Any) -> Message:
    content = f"a maple {next(_numbers)}"
    return Message.objects.create(conversation=conversation, role=role, content=content, **fields)


def _more_of_programs(user: User) -> None:
    number, later = next(_numbers), timezone.now() + timedelta(days=1)
    ApiKey.objects.create(user=user, name=f"key{number}", digest="0" * 64)
    Login.objects.create(user=user, session_key=f"session{number}", last_used=timezone.now())
    fields = {"user": user, "content": f"content{number}", "purpose": "batch", "size": 1}
    file = StoredFile.objects.create(**fields, filename="a.jsonl", expires=later)
    Batch.objects.create(
        user=user, name=f"b{number}", input=file, status="completed", window="24h", expires=later
    )
    StoredJob.objects.create(
        user=user,
        name=f"j{number}",
        endpoint="/v1/completions",
        model="tiny",
        priority="default",
        body=b"{}",
        status="completed",
        expires=later,
    )
    KeptRequest.objects.create(user=user, key=f"kept {number}")


def _more_of_the_instance(user: User) -> None:
    number = next(_numbers)
    name = f"listed {number}"
    plan = Plan.objects.create(name=name)
    User.objects.create(username=name, plan=plan)
    AuditEntry.objects.create(user=user, who=user.username, action="look", target=name, result="ok")
    UsageRow.objects.create(day=timezone.now().date(), user=name, model="tiny", requests=1)
    DeadReplay.objects.create(letter=name, request_id=name, model="tiny", user=name, by="somebody")


@dataclass(frozen=True, slots=True)
class Site:
    """An administrator with some rows of every kind, in a browser and with a key."""

    http: httpx.AsyncClient
    key: str
    user: User
    conversation: Conversation
    response: StoredResponse

    def path(self, pattern: str) -> str:
        name = f"resp_{self.response.name}"
        return pattern.format(conversation=self.conversation.pk, response=name)

    async def queries(self, pattern: str) -> list[Query]:
        """What a GET reads, when whatever is read once a minute has been read."""
        await self._get(pattern)
        with watched() as queries:
            answer = await self._get(pattern)
        assert answer.status_code == 200, (pattern, answer.text)
        return queries

    async def _get(self, pattern: str) -> httpx.Response:
        headers = {"Authorization": f"Bearer {self.key}"} if pattern.startswith("/v1") else {}
        return await self.http.get(self.path(pattern), headers=headers)

    async def grow(self, count: int) -> None:
        await more_rows(self.user, self.conversation, self.response, count)


@pytest.fixture
async def site(fake: FakeClient) -> Any:
    from api.accounts import keys

    user = await make_user(is_staff=True, is_superuser=True)
    async with browser() as client:
        await log_in(client, user)
        key = await sync_to_async(keys.create)(user)
        conversation = await Conversation.objects.acreate(user=user, model="tiny", title="maple")
        site = Site(client, key, user, conversation, await _response(client, user, key))
        await site.grow(FEW)
        yield site
    await User.objects.filter(pk=user.pk).adelete()
    await User.objects.filter(username__startswith="listed ").adelete()
    for kind in (Plan, AuditEntry, UsageRow, DeadReplay):
        await kind.objects.all().adelete()


async def _response(client: httpx.AsyncClient, user: User, key: str) -> StoredResponse:
    answer = await client.post(
        "/v1/responses",
        headers={"Authorization": f"Bearer {key}"},
        json={"model": "tiny", "input": "a maple"},
    )
    assert answer.status_code == 200, answer.text
    return await StoredResponse.objects.aget(user=user)


async def test_as_many_queries_for_many_rows_as_for_few(site: Site) -> None:
    few = {path: await site.queries(path) for path in [*LISTS, *PAGES]}
    await site.grow(MANY - FEW)
    many = {path: await site.queries(path) for path in [*LISTS, *PAGES]}
    more = {path: len(many[path]) for path in few if len(many[path]) > len(few[path])}
    assert more == {}, {path: _repeated(many[path]) for path in more}


def _repeated(queries: list[Query]) -> str:
    texts = [query.sql for query in queries]
    return max(texts, key=texts.count)


def whole_tables(plan: list[str]) -> set[str]:
    """The tables that a plan of SQLite reads from one end to the other."""
    scans = (re.match(r"SCAN (\w+)", step) for step in plan)
    return {scan[1] for scan in scans if scan}


@pytest.mark.sqlite
async def test_no_list_reads_a_whole_table(site: Site) -> None:
    growing = {kind._meta.db_table for kind in GROWING}
    read: dict[str, set[str]] = {}
    for path in LISTS:
        for query in await site.queries(path):
            tables = _names(query.sql, whole_tables(await _plan(query)))
            read[path] = read.get(path, set()) | (tables & growing)
    assert {path: tables for path, tables in read.items() if tables} == {}


def _names(sql: str, tables: set[str]) -> set[str]:
    """The tables that these names (some of them aliases, such as U0) stand for."""
    aliases = {alias: table for table, alias in re.findall(r'"(\w+)" (U\d+|T\d+)', sql)}
    return {aliases.get(table, table) for table in tables}


@sync_to_async
def _plan(query: Query) -> list[str]:
    with connection.cursor() as cursor:
        cursor.execute(f"EXPLAIN QUERY PLAN {query.sql}", query.values)
        return [str(row[3]) for row in cursor.fetchall()]


@pytest.mark.sqlite
async def test_a_whole_table_is_noticed(database: None) -> None:
    plan = await _plan(Query('SELECT * FROM "chat_message" WHERE "content" = %s', ["maple"]))
    assert whole_tables(plan) == {"chat_message"}
