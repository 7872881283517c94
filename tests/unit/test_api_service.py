"""/arranca/, health, pages, the environment."""

import asyncio
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import httpx
import pytest
from asgiref.sync import sync_to_async
from django.conf import settings

from api import environment
from api.accounts import keys
from api.accounts.models import User
from api.answers import process
from api.metrics.instruments import Instruments
from api.server.observation import Observer
from broker.tracing import NO_TRACER
from broker.wire import Failed
from cli import ports
from tests.unit.api_site import FakeClient, node_state


@pytest.mark.parametrize("timestamp", [1712345678, 1712345678.25, "2024-04-05T19:34:38Z", "", -1])
async def test_arranca_answers_with_the_same_timestamp(
    program: httpx.AsyncClient, fake: FakeClient, timestamp: Any
) -> None:
    answer = await program.post(
        "/arranca/", json={"text": "hello world", "timestamp": timestamp, "max_tokens": 9}
    )
    assert answer.status_code == 200
    job = fake.jobs[0]
    assert answer.json() == {
        "text": "hello world",
        "timestamp": timestamp,
        "request_id": job.request_id,
    }
    assert answer.headers["X-Request-Id"] == job.request_id
    assert (job.model, job.sampling.max_tokens) == ("tiny", 9)


async def test_arranca_in_lines(program: httpx.AsyncClient, fake: FakeClient) -> None:
    body = {"text": "hello world", "timestamp": 7, "model": "tiny", "stream": True}
    answer = await program.post("/arranca/", json=body)
    assert answer.headers["content-type"] == "application/x-ndjson; charset=utf-8"
    lines = [json.loads(line) for line in answer.content.split(b"\n") if line]
    request_id = fake.jobs[0].request_id
    assert lines[0] == {"kind": "accepted", "request_id": request_id}
    assert "".join(line["text"] for line in lines if line["kind"] == "text") == lines[-1]["text"]
    assert lines[-1] == {
        "kind": "done",
        "text": "hello world",
        "timestamp": 7,
        "finish_reason": "stop",
        "request_id": request_id,
    }


async def test_arranca_with_a_session(member: httpx.AsyncClient) -> None:
    assert (await member.post("/arranca/", json={"text": "hi", "timestamp": 1})).json()[
        "text"
    ] == "hi"


@pytest.mark.parametrize(
    ("body", "field"),
    [
        ({"timestamp": 1}, "text"),
        ({"text": "", "timestamp": 1}, "text"),
        ({"text": 3, "timestamp": 1}, "text"),
        ({"text": "hi"}, "timestamp"),
        ({"text": "hi", "timestamp": None}, "timestamp"),
        ({"text": "hi", "timestamp": {}}, "timestamp"),
        ({"text": "hi", "timestamp": True}, "timestamp"),
        ({"text": "hi", "timestamp": 1, "max_tokens": -1}, "max_tokens"),
    ],
)
async def test_arranca_names_what_is_wrong(
    program: httpx.AsyncClient, body: Any, field: str
) -> None:
    answer = await program.post("/arranca/", json=body)
    assert (answer.status_code, answer.json()["error"]["field"]) == (400, field)


async def test_arranca_too_long_and_waiting(program: httpx.AsyncClient, fake: FakeClient) -> None:
    fake.states.clear()
    waited = await program.post("/arranca/", json={"text": "hi", "timestamp": 1})
    assert waited.headers["X-Canopy-Waited"] == "no node is serving tiny yet"
    fake.script = lambda job: [
        Failed(request_id=job.request_id, code="too_long", message="9 of 8 tokens")
    ]
    answer = await program.post("/arranca/", json={"text": "hi", "timestamp": 1})
    assert (answer.status_code, answer.json()["error"]["field"]) == (400, "text")


async def test_health(web: httpx.AsyncClient, fake: FakeClient) -> None:
    assert (await web.get("/healthz")).status_code == 200
    assert (await web.get("/health")).status_code == 200
    ready = await web.get("/readyz")
    serves = {"nodes": 1, "slots": 2, "free": 2, "failed": []}
    nobody = {"nodes": 0, "slots": 0, "free": 0, "failed": []}
    told = {"status": "ready", "missing": [], "models": {"tiny": serves, "big": nobody}}
    assert (ready.status_code, ready.json()) == (200, told)
    fake.connected = False
    assert (await web.get("/healthz")).status_code == 200
    ready = await web.get("/readyz")
    assert (ready.status_code, len(ready.json()["missing"])) == (503, 1)
    assert "broker" in ready.json()["missing"][0]


async def test_a_model_whose_nodes_have_all_failed_is_not_ready(
    web: httpx.AsyncClient, fake: FakeClient
) -> None:
    root = node_state("root", engine="none", parent=None, slots=0)
    bad = node_state("n1", status="failed", detail="out of memory", running=1)
    fake.states = {"root": root, "n1": bad, "n2": node_state("n2", status="starting")}
    ready = await web.get("/readyz")
    failed = [{"name": "n1", "detail": "out of memory"}]
    assert (ready.status_code, ready.json()["missing"]) == (200, [])
    assert ready.json()["models"]["tiny"] == {"nodes": 2, "slots": 0, "free": 0, "failed": failed}
    del fake.states["n2"]
    ready = await web.get("/readyz")
    assert (ready.status_code, ready.json()["missing"]) == (503, ["every node of tiny has failed"])
    fake.change(node_state("n1", status="idle"))
    assert (await web.get("/readyz")).status_code == 200


async def test_pages(
    web: httpx.AsyncClient, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(settings, "FRONTEND_DIST", tmp_path)
    missing = await web.get("/")
    assert (missing.status_code, missing.text.count("\n")) == (503, 1)
    assert "./canopy up" in missing.text
    (tmp_path / "index.html").write_text("<!doctype html>hello")
    for path in ("/", "/tree/", "/tree/line"):
        page = await web.get(path)
        assert page.headers["content-type"].startswith("text/html")
        assert page.headers["Cache-Control"] == "no-cache"
        assert page.text == "<!doctype html>hello"


async def test_the_frontends_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from api.server.asgi import with_static_files
    from api.server.handler import Handler

    (tmp_path / "assets").mkdir()
    (tmp_path / "assets" / "index-DiwrgTda.js").write_text("1")
    (tmp_path / "icon.svg").write_text("<svg/>")
    monkeypatch.setattr(settings, "FRONTEND_DIST", tmp_path)
    handler = Handler(Observer(Instruments("api").http, NO_TRACER))
    transport = httpx.ASGITransport(app=with_static_files(handler))
    async with httpx.AsyncClient(transport=transport, base_url="http://127.0.0.1") as web:
        assert (
            "immutable"
            in (await web.get("/static/assets/index-DiwrgTda.js")).headers["Cache-Control"]
        )
        assert (await web.get("/static/icon.svg")).headers[
            "Cache-Control"
        ] == "max-age=3600, public"
        assert (await web.get("/static/../settings.py")).status_code == 404


def test_environment(tmp_path: Path) -> None:
    settings = environment.read(
        {"CANOPY_HOME": str(tmp_path), "CANOPY_MODELS": '["a", "b"]', "CANOPY_HOSTS": "x.org,y"}
    )
    assert (settings.default_model, settings.hosts, settings.port) == ("a", ("x.org", "y"), None)
    assert settings.database_url.endswith("/db.sqlite3")
    assert (settings.backlog, settings.backlog_bytes, settings.job_seconds) == (
        1000,
        200_000_000,
        3600.0,
    )
    chosen = environment.read({"CANOPY_BACKLOG": "5", "CANOPY_JOB_SECONDS": "0.5"})
    assert (chosen.backlog, chosen.job_seconds) == (5, 0.5)
    assert (settings.public_url, settings.public_hosts, settings.cors_origins) == (None, (), ("*",))
    behind = environment.read(
        {"CANOPY_URL": "https://Chat.example:443/", "CANOPY_CORS_ORIGINS": "none"}
    )
    assert (behind.public_url, behind.public_hosts) == ("https://chat.example", ("chat.example",))
    assert (behind.base_path, behind.address) == ("", "https://chat.example")
    below = environment.read({"CANOPY_URL": "https://[2001:db8::1]:8443/team/canopy/"})
    assert (below.public_url, below.base_path) == ("https://[2001:db8::1]:8443", "/team/canopy")
    assert (below.address, below.public_hosts) == (
        "https://[2001:db8::1]:8443/team/canopy",
        ("[2001:db8::1]",),
    )
    former = environment.read({"CANOPY_PUBLIC_URL": "https://chat.example"})
    assert former.address == "https://chat.example"
    assert behind.cors_origins == ()
    assert environment.read({"CANOPY_TRUSTED_PROXIES": "none"}).proxies == ()
    pages = environment.read({"CANOPY_CORS_ORIGINS": "https://a.example, http://b.example:8080"})
    assert pages.cors_origins == ("https://a.example", "http://b.example:8080")
    key = settings.secret_key()
    assert settings.secret_key() == key
    assert settings.secret_file.stat().st_mode & 0o777 == 0o600
    settings.secret_file.write_text("short")
    with pytest.raises(environment.BadEnvironment, match=r"secret\.key"):
        settings.secret_key()


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("CANOPY_MODELS", "tiny"),
        ("CANOPY_MODEL_ALIASES", "claude-*"),
        ("CANOPY_BACKLOG_BYTES", "9999999"),
        ("CANOPY_BACKLOG_BYTES", "9" * 30),
        ("CANOPY_MODELS", "[1]"),
        ("CANOPY_PORT", "http"),
        ("CANOPY_PORT", "0"),
        ("CANOPY_BACKLOG", "0"),
        ("CANOPY_BACKLOG", "-1"),
        ("CANOPY_BACKLOG", "many"),
        ("CANOPY_JOB_SECONDS", "0"),
        ("CANOPY_JOB_SECONDS", "86401"),
        ("CANOPY_JOB_SECONDS", "nan"),
        ("CANOPY_JOB_SECONDS", "long"),
        ("CANOPY_URL", "chat.example"),
        ("CANOPY_URL", "https://user@chat.example"),
        ("CANOPY_URL", "https://chat.example:port"),
        ("CANOPY_URL", "https://[chat.example"),
        ("CANOPY_URL", "https://chat.example/?next=1"),
        ("CANOPY_URL", "https://chat.example/#there"),
        ("CANOPY_URL", "https://chat.example/a//b"),
        ("CANOPY_URL", "https://chat.example/a/../b"),
        ("CANOPY_URL", "https://chat.example/%63anopy"),
        ("CANOPY_URL", 'https://chat.example/"><script>'),
        ("CANOPY_URL", "https://chat.example/" + 201 * "a"),
        ("CANOPY_URL", "https://chat.example/v1/canopy"),
        ("CANOPY_CORS_ORIGINS", "page.example"),
        ("CANOPY_CORS_ORIGINS", "https://page.example *"),
        ("CANOPY_TRUSTED_PROXIES", "nginx"),
        ("CANOPY_CONNECTIONS", "0"),
        ("CANOPY_PEER_CONNECTIONS", "²"),
    ],
)
def test_a_bad_environment_is_refused(name: str, text: str) -> None:
    with pytest.raises(environment.BadEnvironment, match=name):
        environment.read({name: text})


def test_processes_are_told_apart() -> None:
    assert process.may_live(process.identity())
    host, pid, started = process.identity().rsplit(":", 2)
    assert not process.may_live(f"{host}:{pid}:{int(started) + 1}")
    assert not process.may_live("nonsense")
    assert process.may_live("elsewhere:1:1")


async def test_a_stop_signal_ends_open_streams_and_the_process(user: User) -> None:
    await User.objects.filter(pk=user.pk).aupdate(is_staff=True)
    key = await sync_to_async(keys.create)(user)
    (port,) = ports.pick(1)
    arguments = ["-m", "api", "serve", "--port", str(port)]
    env = {**os.environ, "CANOPY_HOME": str(settings.ENV.home)}
    server = await asyncio.create_subprocess_exec(
        sys.executable, *arguments, env=env, stderr=subprocess.DEVNULL
    )
    headers = {"Authorization": f"Bearer {key}"}
    async with (
        asyncio.timeout(30),
        httpx.AsyncClient(base_url=f"http://127.0.0.1:{port}", headers=headers) as page,
    ):
        await _answers(page)
        async with page.stream("GET", "/api/tree/stream") as stream:
            lines = stream.aiter_lines()
            assert await anext(lines) == "event: tree"
            server.terminate()
            assert [line async for line in lines][-1] == ""  # it ended, and was not cut off
        async with asyncio.timeout(4):
            assert await server.wait() == 0


async def _answers(page: httpx.AsyncClient) -> None:
    while True:
        try:
            await page.get("/healthz")
            return
        except httpx.ConnectError:
            await asyncio.sleep(0.05)
