"""Two users and an operator send nonsense: no server error, nothing of one user for the other.

`FUZZ=20000 pytest tests/unit/test_api_fuzz.py --timeout 0 -s` sends so many requests, new ones, and
tells what was answered.
"""

import asyncio
import json
import logging
import os
import re
import secrets
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx
import pytest
from asgiref.sync import sync_to_async
from django.conf import settings
from django.test import Client

from api.accounts import keys
from api.accounts.models import User
from api.urls import endpoints
from broker.operator_messages import BrokerOverview
from tests.unit.api_site import FakeClient, browser, make_user
from tests.unit.fuzzing import Fuzzer, Operation, Request, operations
from tests.unit.test_api_document import ENDLESS

FUZZ = int(os.environ.get("FUZZ", "0"))
REQUESTS = FUZZ or 300
AGAIN_EVERY = 500  # requests; then others with new things go on: these have lost theirs by then
WARM, MEASURED = 0.4, 1.0  # shares of the requests
MOST_GROWTH = 40 << 20  # bytes between those two
HUNG = 20.0  # seconds
SESSION_ENDS = {"POST /api/logout", "POST /api/account/sessions/end-others"}
# An operator's that change the service for everybody: the other requests would find it closed.
CLOSES = re.compile(r"(PUT|POST) /api/operate/(line/intake|line/prompts|models|plans|drills)")
ID = re.compile(r'"id": ?"?((?:file|batch|job|resp|msg)[-_]\w+|\d+)"?')


@dataclass(slots=True)
class Caller:
    """A user with things of every kind, whose texts all have `secret` in them."""

    http: httpx.AsyncClient
    user: User
    key: str
    secret: str
    ids: list[str] = field(default_factory=list)

    async def send(self, request: Request, *, by_key: bool) -> httpx.Response:
        headers = {name: value.encode() for name, value in request.headers.items()}
        if by_key:
            headers["Authorization"] = f"Bearer {self.key}".encode()
        async with asyncio.timeout(HUNG):
            return await self.http.request(
                request.method,
                f"http://127.0.0.1{request.path}",
                content=request.content,
                headers=headers,
            )

    async def _make(self, path: str, body: Any, method: str = "POST") -> str:
        """The id of what was made."""
        headers = {"Content-Type": "application/json", "Idempotency-Key": "same"}
        request = Request(method, path, json.dumps(body).encode(), headers)
        answer = await self.send(request, by_key=path.startswith("/v1"))
        assert answer.status_code < 300, (path, answer.text)
        self.ids += ID.findall(answer.text)
        made = answer.json().get("id") if answer.content else ""
        return str(made)

    async def make_things(self) -> None:
        """Things of every kind."""
        text = f"my {self.secret} text"
        await self._make("/api/conversations", {"content": text})
        await self._make("/api/presets", {"name": secrets.token_hex(8), "instructions": text})
        await self._make("/api/preferences", {"instructions": text}, "PUT")
        await self._make("/api/account/keys", {"label": text})
        await self._make("/v1/responses", {"model": "tiny", "input": text})
        body = {"model": "tiny", "prompt": text}
        await self._make("/v1/jobs", {"endpoint": "/v1/completions", "body": body})
        line = {"custom_id": "1", "method": "POST", "url": "/v1/completions", "body": body}
        file = await self._upload(json.dumps(line))
        batch = {"input_file_id": file, "endpoint": "/v1/completions", "completion_window": "24h"}
        await self._make("/v1/batches", {**batch, "metadata": {"text": text}})

    async def _upload(self, text: str) -> str:
        headers = {"Authorization": f"Bearer {self.key}"}
        files = {"file": (f"{self.secret}.jsonl", text)}
        form = {"purpose": "batch"}
        answer = await self.http.post("/v1/files", headers=headers, files=files, data=form)
        assert answer.status_code == 200, answer.text
        self.ids.append(answer.json()["id"])
        return self.ids[-1]


async def caller(name: str, **fields: Any) -> Caller:
    user = await make_user(**fields)
    http = browser()
    key, session = await sync_to_async(_let_in)(user)
    http.cookies.update(
        {settings.SESSION_COOKIE_NAME: session, settings.CSRF_COOKIE_NAME: "c" * 32}
    )
    http.headers["X-CSRFToken"] = "c" * 32
    return Caller(http, user, key, f"{name}{secrets.token_hex(8)}")


def _let_in(user: User) -> tuple[str, str]:
    client = Client()
    client.force_login(user)
    return keys.create(user), client.cookies[settings.SESSION_COOKIE_NAME].value


@pytest.fixture
def quiet() -> Iterator[None]:
    """Nothing is logged: pytest would keep all of it."""
    logging.disable(logging.CRITICAL)
    yield
    logging.disable(logging.NOTSET)


@dataclass(slots=True)
class Findings:
    """What was answered, and what must not have been."""

    statuses: Counter[int] = field(default_factory=Counter)
    unavailable: Counter[str] = field(default_factory=Counter)
    errors: list[str] = field(default_factory=list)
    leaks: list[str] = field(default_factory=list)
    own: int = 0  # answers that showed a user something of their own
    resident: list[int] = field(default_factory=list)

    def note(self, operation: Operation, sent: Request, answer: httpx.Response) -> None:
        self.statuses[answer.status_code] += 1
        if answer.status_code == 503:
            self.unavailable[f"{operation.label} {answer.text[:120]}"] += 1
        elif answer.status_code >= 500 and answer.status_code != 504:
            self.errors.append(f"{operation.label} {sent} {answer.text[:300]}"[:2000])

    def look_for(
        self, own: str, of_others: list[str], sent: Request, answer: httpx.Response
    ) -> None:
        seen = answer.text + repr(answer.headers)
        self.own += own in seen
        if any(each in seen for each in of_others):
            self.leaks.append(f"{sent} {answer.text[:300]}"[:2000])


def resident() -> int:
    """Bytes."""
    return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")


class Run:
    """All requests of a test."""

    def __init__(self, fake: FakeClient) -> None:
        document = json.loads(json.dumps(endpoints.get_openapi_schema()))
        self._all = [
            each
            for each in operations(document)
            if each.label not in ENDLESS and each.label not in SESSION_ENDS
        ]
        self._fake = fake
        self._users: list[Caller] = []
        self._operator: Caller | None = None
        self.seed = secrets.randbits(32) if FUZZ else 5
        self._fuzzer = Fuzzer(document, self.seed)
        self._document = document
        self.findings = Findings()

    async def send_all(self, count: int) -> None:
        for number in range(count):
            if number % AGAIN_EVERY == 0:
                await self._begin_again()
            await self._send_one()
            if number + 1 in {int(count * WARM), int(count * MEASURED)}:
                self.findings.resident.append(resident())

    async def _begin_again(self) -> None:
        """Others come, with things of their own; the scripted broker forgets its jobs."""
        await self.end()
        self._users = [await caller("birch"), await caller("maple")]
        self._operator = await caller("oak", is_staff=True, is_superuser=True)
        for user in self._users:
            await user.make_things()
        self._fuzzer.ids = [each for user in self._users for each in user.ids]
        self._fuzzer.ids += [self._users[0].user.username, "1", "n1", "tiny"]
        self._fake.jobs.clear()
        self._fake.pushed.clear()
        self._fake.controls.clear()
        self._fake.reports.publish(BrokerOverview(process="api-2"))  # the tree can be looked at

    async def end(self) -> None:
        """The accounts are removed, with all they have."""
        gone = [*self._users, *([self._operator] if self._operator else [])]
        for each in gone:
            await each.http.aclose()
            await User.objects.filter(pk=each.user.pk).adelete()

    async def _send_one(self) -> None:
        choose = self._fuzzer.random
        who = choose.choice([*self._users, *self._users, self._operator])
        assert who is not None
        operation = choose.choice(self._all)
        if who is self._operator and CLOSES.match(operation.label):
            return
        request = self._fuzzer.request(operation)
        if _endless(request):
            return
        answer = await who.send(request, by_key=choose.random() < self._share_by_key(operation))
        self.findings.note(operation, request, answer)
        if who is not self._operator:
            others = [each.secret for each in self._users if each is not who]
            self.findings.look_for(who.secret, others, request, answer)

    @staticmethod
    def _share_by_key(operation: Operation) -> float:
        return 0.97 if operation.path.startswith("/v1") else 0.2


def _endless(request: Request) -> bool:
    path = request.path.partition("?")[0]
    return f"GET {path}" in ENDLESS and request.method in {"GET", "HEAD"}


async def test_nonsense_is_refused_and_tells_nothing(fake: FakeClient, quiet: None) -> None:
    run = Run(fake)
    await run.send_all(REQUESTS)
    await run.end()
    found = run.findings
    print("seed:", run.seed, sorted(found.statuses.items()), found.unavailable.most_common(10))
    print("resident, MiB:", [size >> 20 for size in found.resident], "own:", found.own)
    assert found.errors == []
    assert found.leaks == []
    assert found.own > 0
    if FUZZ:
        warm, end = found.resident
        assert end - warm < MOST_GROWTH
