"""Sessions, CSRF, API keys, one-time tokens: who may do what."""

import time
from datetime import timedelta
from pathlib import Path
from typing import Any

import httpx
import pytest
from asgiref.sync import sync_to_async
from django.conf import settings
from django.utils import timezone

from api.accounts import key_cache, keys, tokens
from api.accounts.models import ApiKey, LoginToken, User
from api.context import app
from tests.unit.api_site import FakeClient, browser, log_in, make_user, refresh_csrf

create_key = sync_to_async(keys.create)
create_token = sync_to_async(tokens.create)

CHANGES = [
    ("POST", "/api/login", {"username": "x", "password": "y"}),
    ("POST", "/api/logout", None),
    ("POST", "/api/conversations", {}),
    ("PATCH", "/api/conversations/1", {"title": "x"}),
    ("DELETE", "/api/conversations/1", None),
    ("POST", "/api/conversations/bulk", {"action": "delete", "ids": [1]}),
    ("POST", "/api/conversations/import", {"conversations": [{"title": "x", "messages": []}]}),
    ("POST", "/api/conversations/1/restore", None),
    ("POST", "/api/conversations/1/shares", None),
    ("DELETE", "/api/shares/1", None),
    ("POST", "/api/conversations/1/messages", {"content": "x"}),
    ("POST", "/api/conversations/1/messages/1/stop", None),
    ("POST", "/api/conversations/1/messages/1/continue", None),
    ("POST", "/api/conversations/1/messages/1/regenerate", {}),
    ("POST", "/api/account/start", {"name": "x", "password": "y"}),
    ("POST", "/api/account/password", {"current": "x", "new": "y"}),
    ("POST", "/api/account/delete", {"password": "x"}),
    ("POST", "/api/account/keys", {"label": "x"}),
    ("DELETE", "/api/account/keys/1", None),
    ("DELETE", "/api/account/sessions/1", None),
    ("POST", "/api/account/sessions/end-others", None),
    ("POST", "/api/push/subscriptions", {"endpoint": "x", "keys": {"p256dh": "x", "auth": "x"}}),
    ("POST", "/api/push/subscriptions/remove", {"endpoint": "x"}),
    ("PUT", "/api/conversations/1/messages/1/feedback", {"good": True}),
    ("DELETE", "/api/conversations/1/messages/1/feedback", None),
    ("PUT", "/api/preferences", {}),
    ("PUT", "/api/conversations/1/preferences", {}),
    ("PUT", "/api/conversations/1/preset", {"preset": 1}),
    ("POST", "/api/presets", {"name": "x"}),
    ("DELETE", "/api/presets/1", None),
    ("DELETE", "/api/jobs/1", None),
    ("POST", "/api/tree/nodes/n1/drain", None),
    ("POST", "/api/tree/nodes/n1/resume", None),
    ("POST", "/api/operate/nodes/n1", {"action": "drain"}),
    ("POST", "/api/operate/drills", {"node": "n1"}),
    ("POST", "/api/operate/hosts/1/nodes", {"model": "tiny"}),
    ("DELETE", "/api/operate/hosts/1/nodes/n1", None),
    ("PUT", "/api/operate/plans", {"name": "x"}),
    ("POST", "/api/operate/plans/remove", {"name": "x"}),
    ("POST", "/api/operate/plans/assign", {"user": "x", "plan": None}),
    ("POST", "/api/operate/models/load", {"model": "tiny", "host": "here"}),
    ("POST", "/api/operate/models/stop", {"model": "tiny"}),
    ("POST", "/api/operate/models/autoscale/off", {"model": "tiny"}),
    ("PUT", "/api/operate/models/autoscale", {}),
    ("PUT", "/api/operate/models/settings", {"model": "tiny"}),
    ("POST", "/api/operate/dead/drop", {"ids": ["1"]}),
    ("POST", "/api/operate/dead/replay", {"ids": ["1"]}),
    ("POST", "/api/operate/line/jobs/1/cancel", None),
    ("POST", "/api/operate/line/jobs/1/move", {}),
    ("POST", "/api/operate/line/jobs/1/class", {"job_class": "batch"}),
    ("POST", "/api/operate/line/jobs/1/prompt", None),
    ("PUT", "/api/operate/line/intake", {"model": "tiny", "paused": False}),
    ("PUT", "/api/operate/line/prompts", {"allowed": False}),
    ("POST", "/arranca/", {"text": "x", "timestamp": 1}),
]
MEMBERS_ONLY = [
    ("GET", "/api/models"),
    ("GET", "/api/conversations"),
    ("GET", "/api/conversations/1"),
    ("GET", "/api/conversations/1/messages/1/stream"),
    ("GET", "/api/jobs/1"),
    ("GET", "/api/tree"),
    ("GET", "/api/tree/stream"),
    *((method, path) for method, path, _ in CHANGES if path not in ("/api/login", "/api/logout")),
]


async def test_the_list_of_changes_is_complete() -> None:
    from api.urls import endpoints

    paths = endpoints.get_openapi_schema()["paths"]
    operations = {
        (method.upper(), path)
        for path, methods in paths.items()
        for method in methods
        if method != "get"
    }
    listed = {
        (method, path.replace("/1", "/{}").replace("/n1", "/{}")) for method, path, _ in CHANGES
    }
    without_names = {
        (method, _blank(path)) for method, path in operations if not path.startswith("/v1/")
    }
    assert without_names == listed


def _blank(path: str) -> str:
    return "/".join("{}" if part.startswith("{") else part for part in path.split("/"))


@pytest.mark.parametrize(("method", "path", "body"), CHANGES)
async def test_sessions_need_a_csrf_token(
    member: httpx.AsyncClient, method: str, path: str, body: Any
) -> None:
    del member.headers["X-CSRFToken"]
    answer = await member.request(method, path, json=body)
    assert answer.status_code == 403
    assert "CSRF" in answer.json()["error"]["message"]
    member.headers["X-CSRFToken"] = "x" * 32
    assert (await member.request(method, path, json=body)).status_code == 403


@pytest.mark.parametrize(
    ("method", "path", "body"), [each for each in CHANGES if "log" not in each[1]]
)
async def test_keys_need_none(
    program: httpx.AsyncClient, method: str, path: str, body: Any
) -> None:
    answer = await program.request(method, path, json=body)
    refused = "tree" in path or "operate" in path or "/account/" in path
    assert answer.status_code in ((403,) if refused else (200, 201, 202, 204, 404))
    assert "CSRF" not in answer.text


@pytest.mark.parametrize(("method", "path"), MEMBERS_ONLY)
async def test_nobody_gets_401(web: httpx.AsyncClient, method: str, path: str) -> None:
    assert (await web.request(method, path)).status_code == 401
    web.headers["Authorization"] = "Bearer canopy_00000000_wrong"
    assert (await web.request(method, path)).status_code == 401


@pytest.mark.parametrize(
    "header", ["", "Bearer", "Bearer ", "Basic YTpi", "Bearer x", "bearer canopy__", "Bearer é"]
)
async def test_a_bad_header_is_not_rescued_by_a_session(
    member: httpx.AsyncClient, header: str
) -> None:
    answer = await member.get("/api/conversations", headers={"Authorization": header.encode()})
    assert answer.status_code == 401


async def test_v1_takes_no_sessions(member: httpx.AsyncClient) -> None:
    answer = await member.get("/v1/models")
    error = answer.json()["error"]
    assert (answer.status_code, error["type"], error["code"]) == (
        401,
        "authentication_error",
        "invalid_api_key",
    )


async def test_keys_are_stored_hashed_and_can_be_revoked(
    web: httpx.AsyncClient, user: User
) -> None:
    key = await create_key(user)
    stored = await ApiKey.objects.aget(user=user)
    assert key not in (stored.name, stored.digest)
    headers = {"Authorization": f"Bearer {key}"}
    assert (await web.get("/v1/models", headers=headers)).status_code == 200
    assert (
        await web.get("/v1/models", headers={"Authorization": f"Bearer {key}x"})
    ).status_code == 401
    assert (
        await web.get("/v1/models", headers={"Authorization": f"Bearer {key[:-1]}"})
    ).status_code == 401
    await stored.arefresh_from_db()
    assert stored.last_used is not None
    await ApiKey.objects.filter(pk=stored.pk).aupdate(revoked=True)
    assert (await web.get("/v1/models", headers=headers)).status_code == 200  # still remembered
    app().keys.clear()
    assert (await web.get("/v1/models", headers=headers)).status_code == 401


async def test_a_revocation_takes_at_most_a_second(
    web: httpx.AsyncClient, user: User, monkeypatch: pytest.MonkeyPatch
) -> None:
    headers = {"Authorization": f"Bearer {await create_key(user)}"}
    assert (await web.get("/v1/models", headers=headers)).status_code == 200
    await User.objects.filter(pk=user.pk).aupdate(is_active=False)
    now = time.monotonic()
    monkeypatch.setattr(key_cache.time, "monotonic", lambda: now + 1)
    assert (await web.get("/v1/models", headers=headers)).status_code == 401


async def test_login_and_logout(web: httpx.AsyncClient, user: User) -> None:
    me = await web.get("/api/me")
    assert me.json() == {
        "user": None,
        "default_model": "tiny",
        "sign_on": None,
        "after_logout": None,
    }
    await refresh_csrf(web)
    wrong = await web.post("/api/login", json={"username": user.username, "password": "wrong"})
    assert (wrong.status_code, wrong.json()["error"]["field"]) == (400, "password")
    missing = await web.post("/api/login", json={"username": user.username})
    assert (missing.status_code, missing.json()["error"]["field"]) == (400, "password")
    await log_in(web, user)
    me = (await web.get("/api/me")).json()
    assert me["user"] == {
        "name": user.username,
        "staff": False,
        "has_password": True,
        "known_elsewhere": False,
        "confirmation": "password",
    }
    assert (await web.post("/api/logout")).status_code == 204
    assert (await web.get("/api/me")).json()["user"] is None


async def test_cookies_are_guarded(web: httpx.AsyncClient, user: User) -> None:
    await web.get("/api/me")
    await refresh_csrf(web)
    answer = await web.post(
        "/api/login", json={"username": user.username, "password": "secret password"}
    )
    session = next(
        each for each in answer.headers.get_list("set-cookie") if each.startswith("canopy_session")
    )
    assert "HttpOnly" in session
    assert "SameSite=Lax" in session


@pytest.mark.parametrize(
    "kind",
    ["multipart/form-data; boundary=x", "multipart/form-data", "application/x-www-form-urlencoded"],
)
async def test_bodies_are_json_whatever_their_header_says(
    member: httpx.AsyncClient, kind: str
) -> None:
    answer = await member.post(
        "/arranca/", content=b'{"text": "a", "timestamp": 1}', headers={"Content-Type": kind}
    )
    assert (answer.status_code, answer.json()["text"]) == (200, "a")
    form = await member.post(
        "/api/conversations", content=b"--x\r\n\r\n--x--", headers={"Content-Type": kind}
    )
    assert (form.status_code, form.json()["error"]["field"]) == (400, "body")


async def test_a_foreign_page_cannot_use_the_session(member: httpx.AsyncClient) -> None:
    answer = await member.post(
        "/api/conversations", json={}, headers={"Origin": "https://evil.example"}
    )
    assert answer.status_code == 403


async def test_login_token_works_once(web: httpx.AsyncClient, fake: FakeClient) -> None:
    admin = User(username="welcomed", is_staff=True, is_superuser=True)
    admin.set_unusable_password()  # as the account that the first start makes
    await admin.asave(force_insert=True)
    token = await create_token(admin)
    preview = await web.head("/login", params={"token": token})
    assert preview.status_code == 405, "who only looks does not use the link up"
    assert token not in (await LoginToken.objects.aget(user=admin)).digest
    answer = await web.get("/login", params={"token": token})
    assert (answer.status_code, answer.headers["location"]) == (302, "/welcome")
    assert answer.headers["Referrer-Policy"] == "no-referrer"
    assert answer.headers["Cache-Control"] == "no-store"
    assert (await web.get("/api/me")).json()["user"]["staff"] is True
    async with browser() as other:
        again = await other.get("/login", params={"token": token})
        assert again.status_code == 403
        assert again.headers["Content-Type"].startswith("text/html")
        assert again.headers["Referrer-Policy"] == "no-referrer"
        assert (await other.get("/api/me")).json()["user"] is None


async def test_a_used_link_says_what_to_do_before_the_pages_are_built(
    web: httpx.AsyncClient, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(settings, "FRONTEND_DIST", tmp_path)
    answer = await web.get("/login", params={"token": "x"})
    assert answer.status_code == 403
    assert "./canopy login" in answer.text


@pytest.mark.parametrize("token", ["", "x", "1-x", "-", "9" * 30 + "-x", "²-x", "1\x00-"])
async def test_wrong_login_tokens(web: httpx.AsyncClient, token: str) -> None:
    assert (await web.get("/login", params={"token": token})).status_code == 403


async def test_login_tokens_expire_and_are_replaced(web: httpx.AsyncClient) -> None:
    user = await make_user()
    former, newer = await create_token(user), await create_token(user)
    assert (await web.get("/login", params={"token": former})).status_code == 403
    await LoginToken.objects.filter(user=user).aupdate(
        expires=timezone.now() - timedelta(seconds=1)
    )
    assert (await web.get("/login", params={"token": newer})).status_code == 403


async def test_unknown_hosts_are_refused(web: httpx.AsyncClient) -> None:
    answer = await web.get("/api/me", headers={"Host": "evil.example"})
    assert (answer.status_code, set(answer.json()["error"])) == (
        400,
        {"message", "field", "code", "params"},
    )


async def test_pages_carry_security_headers(web: httpx.AsyncClient) -> None:
    for path in ("/", "/api/me", "/healthz", "/admin/login/"):
        headers = (await web.get(path)).headers
        assert headers["Content-Security-Policy"].startswith("default-src 'self'"), path
        assert headers["X-Content-Type-Options"] == "nosniff"
        assert headers["X-Frame-Options"] == "DENY"
        assert headers["Referrer-Policy"] == "same-origin"


async def test_admin_and_docs(web: httpx.AsyncClient) -> None:
    assert (await web.get("/api/openapi.json")).status_code == 302
    await log_in(web, await make_user(is_staff=True, is_superuser=True))
    assert "/v1/chat/completions" in (await web.get("/api/openapi.json")).json()["paths"]
    for path in ("", "accounts/user/", "accounts/apikey/", "chat/conversation/", "chat/message/"):
        assert (await web.get(f"/admin/{path}")).status_code == 200, path
    style = await web.get("/static/admin/css/base.css")
    assert (style.status_code, style.headers["X-Content-Type-Options"]) == (200, "nosniff")


async def test_admin_forms_need_a_csrf_token(web: httpx.AsyncClient) -> None:
    user = await make_user(is_staff=True, is_superuser=True)
    form = {"username": user.username, "password": "secret password"}
    assert (await web.post("/admin/login/", data=form)).status_code == 403
    await web.get("/admin/login/")
    await refresh_csrf(web)
    assert (await web.post("/admin/login/?next=/admin/", data=form)).status_code == 302


# ---- shares


@pytest.mark.parametrize(
    ("typed", "stored"),
    [
        ("2.5", 2.5),
        ("100", 100.0),
        ("0.01", 0.01),
        ("0", 1.0),
        ("-1", 1.0),
        ("100.5", 1.0),
        ("nan", 1.0),
        ("", 1.0),
    ],
)
async def test_an_administrator_changes_a_users_share(
    web: httpx.AsyncClient, typed: str, stored: float
) -> None:
    await log_in(web, await make_user(is_staff=True, is_superuser=True))
    user = await make_user()
    assert user.share == 1.0
    joined = user.date_joined
    form = {
        "username": user.username,
        "share": typed,
        "is_active": "on",
        "date_joined_0": f"{joined:%Y-%m-%d}",
        "date_joined_1": f"{joined:%H:%M:%S}",
        "csrfmiddlewaretoken": web.cookies["csrftoken"],
    }
    answer = await web.post(f"/admin/accounts/user/{user.pk}/change/", data=form)
    assert answer.status_code == (200 if stored == 1.0 else 302), answer.text  # 200: the form again
    await user.arefresh_from_db()
    assert user.share == stored


async def test_a_request_costs_no_further_query_for_the_share(
    program: httpx.AsyncClient, user: User, fake: FakeClient
) -> None:
    body = {"model": "tiny", "prompt": "hello"}
    assert (await program.post("/v1/completions", json=body)).status_code == 200
    await User.objects.filter(pk=user.pk).aupdate(share=3)
    assert (await program.post("/v1/completions", json=body)).status_code == 200
    app().keys.clear()
    assert (await program.post("/v1/completions", json=body)).status_code == 200
    assert [job.share for job in fake.jobs] == [1.0, 1.0, 3.0]
