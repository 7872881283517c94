"""/readyz and requests without a broker, a disk with room or a database."""

import asyncio
import errno
import resource
import sqlite3
from pathlib import Path
from typing import Any

import httpx
import pytest
import pytest_asyncio
from django.db import InterfaceError, OperationalError, ProgrammingError

from api.accounts.models import ApiKey, User
from api.context import app
from api.health import storage
from api.health.probe import Probe
from api.health.readiness import SILENT_BROKER
from api.server import background
from api.storage import outages
from tests.unit.api_site import FakeClient, make_user

CHAT = {"model": "tiny", "messages": [{"role": "user", "content": "hello"}]}


async def test_a_broker_that_is_cut_off_is_not_ready(
    web: httpx.AsyncClient, fake: FakeClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its connection looks well until heartbeats have been missed."""
    monkeypatch.setattr(fake, "responds", asyncio.Event().wait)
    monkeypatch.setattr(app().readiness._broker_probe, "_deadline", 0.05)
    answer = await web.get("/readyz")
    assert (answer.status_code, answer.json()["missing"]) == (503, [SILENT_BROKER])


async def test_many_questions_are_one_check() -> None:
    checks = 0

    async def check() -> str | None:
        nonlocal checks
        checks += 1
        await asyncio.sleep(0.01)
        return None

    probe = Probe(check, silence="silent")
    assert await asyncio.gather(*(probe.problem() for _ in range(50))) == [None] * 50
    assert checks == 1
    probe._seconds = 0.0
    await probe.problem()
    assert checks == 2


async def test_a_check_that_hangs_is_silence_until_it_ends() -> None:
    release = asyncio.Event()

    async def check() -> str | None:
        await release.wait()
        return None

    probe = Probe(check, silence="silent", deadline=0.01)
    assert [await probe.problem() for _ in range(3)] == ["silent"] * 3
    release.set()
    assert await probe.problem() is None


def test_a_disk_without_room_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert storage.disk_problem(tmp_path) is None
    assert list(tmp_path.iterdir()) == []
    monkeypatch.setattr(storage, "LEAST_FREE", 1 << 60)
    assert "is full" in str(storage.disk_problem(tmp_path))


def test_a_folder_that_takes_no_files_is_told(tmp_path: Path) -> None:
    missing = tmp_path / "gone"
    missing.mkdir()
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(
        resource.RLIMIT_FSIZE, (100, hard)
    )  # a write beyond that fails, as on a full disk
    try:
        assert "nothing can be written" in str(storage.disk_problem(missing))
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert list(missing.iterdir()) == []


async def test_a_full_disk_is_not_ready(
    web: httpx.AsyncClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(storage, "LEAST_FREE", 1 << 60)
    answer = await web.get("/readyz")
    assert answer.status_code == 503
    assert "is full" in answer.json()["missing"][0]
    assert (await web.get("/healthz")).status_code == 200


OUTAGES = {
    "database or disk is full": "disk of the service is full",
    "unable to open database file": "cannot open",
    "attempt to write a readonly database": "read-only",
    "database is locked": "busy",
    "disk I/O error": "disk",
    'could not extend file "base/1": No space left on device': "disk of the service is full",
    "cannot execute INSERT in a read-only transaction": "read-only",
    "server closed the connection unexpectedly": "does not answer",
}


@pytest.mark.parametrize(("text", "meaning"), OUTAGES.items())
def test_outages_are_told_in_a_sentence(text: str, meaning: str) -> None:
    sentence = outages.describe(OperationalError(text))
    assert sentence is not None
    assert meaning in sentence
    assert "\n" not in sentence


def test_what_is_no_outage() -> None:
    assert outages.describe(ProgrammingError("syntax error")) is None
    assert outages.describe(KeyError("disk is full")) is None
    wrapped = RuntimeError("a view")
    wrapped.__cause__ = InterfaceError("connection already closed")
    assert outages.describe(wrapped) is not None


class FullDisk:
    """Makes every statement that writes fail as SQLite does on a full disk."""

    def __call__(self, execute: Any, sql: str, parameters: Any, many: bool, context: Any) -> Any:
        if sql.split(maxsplit=1)[0].upper() in ("INSERT", "UPDATE", "DELETE", "SAVEPOINT"):
            raise OperationalError("database or disk is full") from sqlite3.OperationalError(
                "database or disk is full"
            )
        return execute(sql, parameters, many, context)


@pytest_asyncio.fixture
async def full(fake: FakeClient) -> Any:
    """The database's disk is full for the length of the test."""
    from asgiref.sync import sync_to_async
    from django.db import connection

    wrapper = FullDisk()
    await sync_to_async(lambda: connection.execute_wrappers.append(wrapper))()
    yield
    await sync_to_async(lambda: connection.execute_wrappers.remove(wrapper))()


async def test_what_needs_no_write_is_answered_with_a_full_disk(
    program: httpx.AsyncClient, full: None, fake: FakeClient
) -> None:
    assert (await program.get("/v1/models")).status_code == 200
    assert (await program.post("/v1/chat/completions", json=CHAT)).status_code == 200
    assert (await program.post("/arranca/", json={"text": "hi", "timestamp": 1})).status_code == 200
    assert (await program.get("/api/conversations")).status_code == 200
    assert (await ApiKey.objects.afirst()).last_used is None  # type: ignore[union-attr]


async def test_what_must_be_stored_is_a_503_with_a_full_disk(
    program: httpx.AsyncClient, full: None
) -> None:
    answer = await program.post("/api/conversations", json={"title": "t"})
    assert answer.status_code == 503, answer.text
    assert "disk of the service is full" in answer.json()["error"]["message"]
    assert answer.headers["retry-after"]


async def test_a_keyed_request_is_a_503_with_a_full_disk(
    program: httpx.AsyncClient, full: None
) -> None:
    answer = await program.post(
        "/v1/chat/completions", json=CHAT, headers={"Idempotency-Key": "one"}
    )
    assert answer.status_code == 503
    assert "disk of the service is full" in answer.json()["error"]["message"]
    assert answer.json()["error"]["type"] == "service_unavailable_error"


@pytest_asyncio.fixture
async def administrator(fake: FakeClient) -> User:
    """A user who may log in to the admin."""
    return await make_user(is_staff=True)


async def test_a_login_is_a_503_with_a_full_disk(
    administrator: User, web: httpx.AsyncClient, full: None
) -> None:
    """Django's own pages, too: a login stores a session."""
    await web.get("/admin/login/")
    token = web.cookies["csrftoken"]
    form = {
        "csrfmiddlewaretoken": token,
        "username": administrator.username,
        "password": "secret password",
    }
    cookie = {"Cookie": f"csrftoken={token}"}
    page = await web.post("/admin/login/", data=form, headers=cookie)
    api = await web.post("/api/login", json=form, headers={**cookie, "X-CSRFToken": token})
    for answer in (page, api):
        assert answer.status_code == 503, answer.text
        assert "disk of the service is full" in answer.json()["error"]["message"]


async def test_background_work_outlives_its_failures(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(background, "RETRY_SECONDS", 0.0)
    tries = 0

    async def work() -> None:
        nonlocal tries
        tries += 1
        if tries < 3:
            raise OSError(errno.ENOSPC, "No space left on device")

    async with asyncio.timeout(30):
        await background.start("work", work)
    assert tries == 3
