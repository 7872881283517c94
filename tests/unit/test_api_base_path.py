"""CANOPY_URL with a path: the service below /canopy, whether a proxy takes the path off or not."""

from collections.abc import AsyncIterator
from dataclasses import replace
from pathlib import Path

import httpx
import pytest
import pytest_asyncio
from django.conf import settings
from django.test import override_settings
from django.urls import get_resolver

from api.accounts.models import User
from api.context import app
from api.http import pages
from api.public_url import OWN_SEGMENTS
from api.server.asgi import with_static_files
from api.server.base_path import add_base_path, app_path
from api.server.edge import Edge
from api.server.handler import Handler
from api.server.observation import Observer
from broker.tracing import NO_TRACER
from tests.unit.api_site import FakeClient

BASE = "/canopy"
HOST = "https://chat.example:8443"
SETTINGS = {
    "FORCE_SCRIPT_NAME": BASE,
    "STATIC_URL": f"{BASE}/static/",
    "SESSION_COOKIE_PATH": f"{BASE}/",
    "CSRF_COOKIE_PATH": f"{BASE}/",
    "CSRF_COOKIE_NAME": "csrftoken_canopy",
    "CSRF_TRUSTED_ORIGINS": [HOST],
    "ALLOWED_HOSTS": ["chat.example"],
}
PAGE = """<meta name="base-path" content="" /><script src="/static/theme.js"></script>"""


@pytest_asyncio.fixture
async def web(
    fake: FakeClient, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> AsyncIterator[httpx.AsyncClient]:
    """A browser at HOST, below which the service has the settings that CANOPY_URL makes."""
    (tmp_path / "index.html").write_text(PAGE)
    (tmp_path / "theme.js").write_text("1")
    env = replace(settings.ENV, public_url=HOST, base_path=BASE)
    with override_settings(ENV=env, FRONTEND_DIST=tmp_path, **SETTINGS):
        handler = Handler(Observer(app().instruments.http, NO_TRACER))
        transport = httpx.ASGITransport(app=Edge(with_static_files(handler), env))
        async with httpx.AsyncClient(transport=transport, base_url=HOST) as client:
            yield client


@pytest.mark.parametrize("before", [BASE, ""])
async def test_pages_lie_below_the_base_path(web: httpx.AsyncClient, before: str) -> None:
    page = await web.get(f"{before}/tree/")
    assert page.text == PAGE.replace('content=""', f'content="{BASE}"').replace(
        '"/static', f'"{BASE}/static'
    )
    assert (await web.get(f"{before}/static/theme.js")).text == "1"
    assert (await web.get(f"{before}/static/admin/css/base.css")).status_code == 200
    assert (await web.get(f"{before}/healthz")).json()["service"] == "canopy"


async def test_redirects_lead_below_the_base_path(web: httpx.AsyncClient) -> None:
    for path, target in {
        "/canopy": "/canopy/",
        "/canopy/admin/": "/canopy/admin/login/?next=/canopy/admin/",
        "/canopy/tree": "/canopy/tree/",
        "/canopy/api/openapi.json": "/canopy/admin/login/?next=/canopy/api/openapi.json",
    }.items():
        answer = await web.get(path)
        assert answer.headers["Location"] == target, path


async def test_a_session_below_the_base_path(web: httpx.AsyncClient, user: User) -> None:
    await web.get("/canopy/api/me")
    web.headers.update({"X-CSRFToken": web.cookies["csrftoken_canopy"], "Origin": HOST})
    credentials = {"username": user.username, "password": "secret password"}
    login = await web.post("/canopy/api/login", json=credentials)
    assert login.status_code == 200, login.text
    cookies = login.headers.get_list("Set-Cookie")
    assert len(cookies) == 2
    assert all("Path=/canopy/;" in each and "Secure" in each for each in cookies)
    web.headers["X-CSRFToken"] = web.cookies["csrftoken_canopy"]
    assert (await web.post("/canopy/api/conversations", json={})).status_code == 201
    document = (await web.get("/canopy/api/openapi.json")).json()
    assert document["servers"] == [{"url": f"{HOST}{BASE}"}]
    assert "/v1/chat/completions" in document["paths"]


async def test_an_origin_with_another_port_is_told_what_to_set(
    web: httpx.AsyncClient, user: User
) -> None:
    await web.get("/canopy/api/me")
    web.headers["X-CSRFToken"] = web.cookies["csrftoken_canopy"]
    web.headers["Origin"] = "https://chat.example:9443"
    credentials = {"username": user.username, "password": "secret password"}
    refused = await web.post("/canopy/api/login", json=credentials)
    assert refused.status_code == 403
    assert refused.json()["error"]["code"] == "unknown_origin"
    assert "CANOPY_URL" in refused.json()["error"]["message"]


async def test_errors_have_the_shape_of_their_path(web: httpx.AsyncClient) -> None:
    missing = (await web.get("/canopy/v1/nothing")).json()["error"]
    assert missing["type"] == "invalid_request_error"
    assert "/v1/nothing" in missing["message"]
    assert (await web.get("/canopy/v1/models")).headers["Access-Control-Allow-Origin"] == "*"


def test_the_path_is_taken_off_once() -> None:
    for path in ("/canopy/canopy", "/canopy/canopy/x", "/canopyx", "/x", "/"):
        scope = {"path": path}
        add_base_path(scope, BASE)
        add_base_path(scope, BASE)  # changes nothing more
        assert scope["path"].startswith(f"{BASE}/"), path
        assert app_path(scope) == (path.removeprefix(BASE) if path.startswith(f"{BASE}/") else path)
    assert app_path({"path": "/canopy/x"}) == "/canopy/x"


def test_no_base_path_begins_like_an_address_of_ours() -> None:
    routes = [str(pattern.pattern) for pattern in get_resolver().url_patterns]
    nested = [
        str(inner.pattern)
        for pattern in get_resolver().url_patterns
        if not str(pattern.pattern)
        for inner in getattr(pattern, "url_patterns", ())
    ]
    firsts = {route.partition("/")[0] for route in (*routes, *nested)} - {""}
    assert firsts | {"static", "broker"} == OWN_SEGMENTS


def test_the_built_page_can_be_moved() -> None:
    page = (Path(settings.BASE_DIR) / "frontend" / "index.html").read_bytes()
    moved = pages.below(BASE, page)
    assert b'<meta name="base-path" content="/canopy" />' in moved
    assert pages.below("", page) == page
