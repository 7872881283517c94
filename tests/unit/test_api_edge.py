"""What holds for every response: headers, CORS, compression, cookies, errors' shape."""

import asyncio
import gzip
from collections.abc import AsyncIterator
from dataclasses import replace
from ipaddress import ip_network
from typing import Any

import httpx
import pytest
from django.conf import settings
from django.db import OperationalError

from api.context import app
from api.server import compression, response_headers
from api.server.edge import Edge
from tests.unit.api_site import FakeClient

ASKING = {"model": "tiny", "messages": [{"role": "user", "content": "hello"}]}
PAGE = "https://page.example"


def client(application: Any, **env: Any) -> httpx.AsyncClient:
    """A client of `application` behind the outermost layer, in an environment of its own."""
    edge = Edge(application, replace(settings.ENV, **env))
    transport = httpx.ASGITransport(app=edge, client=("127.0.0.1", 1234), raise_app_exceptions=True)
    return httpx.AsyncClient(transport=transport, base_url="http://127.0.0.1")


class Answer:
    """An application that answers with these parts of a body."""

    def __init__(
        self, *parts: bytes, headers: dict[str, str] | None = None, status: int = 200
    ) -> None:
        self.parts = parts
        self.status = status
        self.headers = [(k.encode(), v.encode()) for k, v in (headers or {}).items()]
        self.scope: Any = None

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        self.scope = scope
        await send({"type": "http.response.start", "status": self.status, "headers": self.headers})
        for part in self.parts:
            await send({"type": "http.response.body", "body": part, "more_body": True})
        await send({"type": "http.response.body", "body": b""})


def json_of(size: int, **headers: str) -> Answer:
    return Answer(
        b"a" * size,
        headers={"Content-Type": "application/json", "Content-Length": str(size), **headers},
    )


@pytest.mark.parametrize(
    "path",
    ["/", "/healthz", "/nothing", "/v1/models", "/admin/login/", "/static/admin/css/base.css"],
)
async def test_every_response_says_what_browsers_may_do(web: httpx.AsyncClient, path: str) -> None:
    answer = await web.get(path)
    for name, value in response_headers.SECURITY:
        assert answer.headers.get_list(name.decode()) == [value.decode()], path
    assert "strict-transport-security" not in answer.headers


async def test_static_files_and_refusals_have_the_headers_of_pages(
    web: httpx.AsyncClient, live: str
) -> None:
    async with httpx.AsyncClient(base_url=live) as real:
        page, file = await web.get("/"), await real.get("/static/admin/css/base.css")
    assert file.status_code == 200
    for name, _ in response_headers.SECURITY:
        assert page.headers[name.decode()] == file.headers[name.decode()]


# ---- CORS

PREFLIGHT = {
    "Origin": PAGE,
    "Access-Control-Request-Method": "POST",
    "Access-Control-Request-Headers": "authorization, content-type, "
    "x-stainless-lang, x-stainless-os",
}


async def test_any_page_may_use_v1_with_a_key_but_without_cookies(
    web: httpx.AsyncClient, program: httpx.AsyncClient, fake: FakeClient
) -> None:
    preflight = await web.options("/v1/chat/completions", headers=PREFLIGHT)
    assert (preflight.status_code, preflight.content) == (204, b"")
    assert preflight.headers["access-control-allow-origin"] == "*"
    assert (
        preflight.headers["access-control-allow-headers"]
        == PREFLIGHT["Access-Control-Request-Headers"]
    )
    assert "POST" in preflight.headers["access-control-allow-methods"]
    assert "access-control-allow-credentials" not in preflight.headers
    origin = {"Origin": PAGE}
    answers = [
        await program.post("/v1/chat/completions", json=ASKING, headers=origin),
        await program.post("/v1/chat/completions", json={**ASKING, "stream": True}, headers=origin),
        await web.post("/v1/chat/completions", json=ASKING, headers=origin),  # 401
        await program.get("/v1/models/nothing", headers=origin),  # 404
        await program.post("/v1/chat/completions", content=b"{", headers=origin),  # 400
        await program.put("/v1/models", headers=origin),  # 405
    ]
    assert [answer.status_code for answer in answers] == [200, 200, 401, 404, 400, 405]
    for answer in answers:
        assert answer.headers["access-control-allow-origin"] == "*"
        assert "X-Request-Id" in answer.headers["access-control-expose-headers"]


async def test_no_other_address_is_open_to_pages_elsewhere(web: httpx.AsyncClient) -> None:
    for path in ("/api/conversations", "/", "/arranca/", "/readyz", "/v1x"):
        answer = await web.get(path, headers={"Origin": PAGE})
        assert "access-control-allow-origin" not in answer.headers
        answer = await web.options(path, headers=PREFLIGHT)
        assert "access-control-allow-origin" not in answer.headers


async def test_a_page_elsewhere_may_ask_whether_this_is_a_server(web: httpx.AsyncClient) -> None:
    answer = await web.get("/healthz", headers={"Origin": PAGE})
    assert answer.headers["access-control-allow-origin"] == "*"
    assert answer.json() == {"status": "ok", "service": "canopy"}


async def test_cors_for_some_pages_or_none() -> None:
    async with client(json_of(1), cors_origins=(PAGE,)) as web:
        good = await web.get("/v1/models", headers={"Origin": PAGE})
        assert good.headers["access-control-allow-origin"] == PAGE
        bad = await web.get("/v1/models", headers={"Origin": "https://else.example"})
        assert "access-control-allow-origin" not in bad.headers
        assert "Origin" in good.headers["vary"]
        assert "Origin" in bad.headers["vary"]
        assert (await web.options("/v1/models", headers=PREFLIGHT)).headers[
            "access-control-allow-origin"
        ] == PAGE
    async with client(json_of(1), cors_origins=()) as web:
        assert "access-control-allow-origin" not in (await web.get("/v1/models")).headers


async def test_a_preflight_repeats_only_names_of_headers() -> None:
    async with client(json_of(1)) as web:
        odd = {**PREFLIGHT, "Access-Control-Request-Headers": "x\x7f<script>"}
        allowed = (await web.options("/v1/models", headers=odd)).headers[
            "access-control-allow-headers"
        ]
        assert allowed == "authorization, content-type"


# ---- TLS


async def test_cookies_are_secure_behind_a_proxy_that_speaks_tls() -> None:
    cookie = {"Set-Cookie": "session=1; HttpOnly"}
    https = {"X-Forwarded-Proto": "https"}
    async with client(Answer(b"x", headers=cookie)) as web:
        plain, tls = await web.get("/"), await web.get("/", headers=https)
    assert plain.headers["set-cookie"] == "session=1; HttpOnly"
    assert tls.headers["set-cookie"] == "session=1; HttpOnly; Secure"
    assert tls.headers["strict-transport-security"].startswith("max-age=")
    assert "strict-transport-security" not in plain.headers
    async with client(Answer(b"x", headers=cookie), proxies=(ip_network("192.0.2.0/24"),)) as web:
        stranger = await web.get("/", headers=https)
    assert stranger.headers["set-cookie"] == "session=1; HttpOnly"


async def test_the_public_url_makes_its_host_secure() -> None:
    application = Answer(b"x", headers={"Set-Cookie": "session=1; Secure"})
    async with client(application, public_url="https://chat.example:8443") as web:
        public = await web.get("/", headers={"Host": "chat.example:8443"})
        assert application.scope["scheme"] == "https"
        local = await web.get("/")
        assert application.scope["scheme"] == "http"
    assert public.headers["set-cookie"] == "session=1; Secure"
    assert "strict-transport-security" in public.headers
    assert "strict-transport-security" not in local.headers


async def test_a_login_behind_tls_works(web: httpx.AsyncClient) -> None:
    """Django compares a form's Origin with the scheme that it believes was used."""
    tls = {
        "X-Forwarded-Proto": "https",
        "Origin": "https://127.0.0.1",
        "Referer": "https://127.0.0.1/",
    }
    await web.get("/admin/login/", headers=tls)
    token = {"csrfmiddlewaretoken": web.cookies["csrftoken"], "username": "x", "password": "y"}
    cookie = {"Cookie": f"csrftoken={web.cookies['csrftoken']}"}
    assert (
        await web.post("/admin/login/", data=token, headers={**tls, **cookie})
    ).status_code == 200


# ---- compression


@pytest.mark.parametrize(
    ("accepted", "compressed"),
    [
        ("gzip", True),
        ("gzip, deflate, br", True),
        ("GZIP;q=0.5", True),
        ("*", True),
        ("br;q=1, *;q=0.1", True),
        ("", False),
        ("identity", False),
        ("br", False),
        ("gzip;q=0", False),
        ("gzip;q=0.000, *", False),
        ("*;q=0", False),
    ],
)
async def test_large_answers_are_compressed_for_who_accepts_it(
    accepted: str, compressed: bool
) -> None:
    async with client(json_of(5000)) as web:
        answer = await web.get("/", headers={"Accept-Encoding": accepted})
    assert answer.content == b"a" * 5000
    assert ("content-encoding" in answer.headers) == compressed
    assert answer.headers["vary"] == "Accept-Encoding"


@pytest.mark.parametrize(
    ("path", "answer"),
    [
        ("/", json_of(1000)),
        ("/", json_of(5000, **{"Set-Cookie": "csrftoken=1"})),
        ("/admin/keys/", json_of(5000)),
        ("/", json_of(5000, **{"Content-Encoding": "br"})),
        ("/", Answer(b"a" * 5000, headers={"Content-Type": "text/event-stream; charset=utf-8"})),
        ("/", Answer(b"a" * 5000, headers={"Content-Type": "image/png"})),
        ("/", Answer(b"a" * 5000, headers={"Content-Type": "text/css"}, status=206)),
    ],
    ids=["small", "cookie", "admin", "encoded", "stream", "picture", "part"],
)
async def test_what_is_not_compressed(path: str, answer: Answer) -> None:
    async with client(answer) as web, web.stream("GET", path) as got:
        assert got.headers.get("content-encoding") != "gzip"
        assert b"".join([part async for part in got.aiter_raw()]) == b"".join(answer.parts)


@pytest.mark.parametrize(
    "parts", [[b"a" * 300_000], [b"a" * 5000, b"b" * 90_000, b"c"], [b"a"] * 2000]
)
async def test_compressed_bodies_are_whole(parts: list[bytes]) -> None:
    application = Answer(*parts, headers={"Content-Type": "text/css", "ETag": '"1"'})
    async with client(application) as web, web.stream("GET", "/") as answer:
        raw = b"".join([part async for part in answer.aiter_raw()])
    assert answer.headers["content-encoding"] == "gzip"
    assert answer.headers["etag"] == 'W/"1"'
    assert gzip.decompress(raw) == b"".join(parts)
    assert "content-length" not in answer.headers


async def test_a_compressed_file_is_not_sent_again(live: str) -> None:
    async with httpx.AsyncClient(base_url=live) as web:
        first = await web.get("/static/admin/css/base.css")
        assert first.headers["content-encoding"] == "gzip"
        again = await web.get(
            "/static/admin/css/base.css", headers={"If-None-Match": first.headers["etag"]}
        )
        assert (again.status_code, again.content) == (304, b"")
        head = await web.head("/static/admin/css/base.css")
        assert (head.status_code, head.headers["vary"]) == (200, "Accept-Encoding")


async def test_a_stream_of_tokens_is_never_compressed(program: httpx.AsyncClient) -> None:
    answer = await program.post(
        "/v1/chat/completions",
        json={
            "model": "tiny",
            "stream": True,
            "messages": [{"role": "user", "content": "word " * 400}],
        },
    )
    assert len(answer.content) > compression.LEAST_BYTES
    assert "content-encoding" not in answer.headers


# ---- errors


async def failing(scope: Any, receive: Any, send: Any) -> None:
    raise KeyError("secret")


async def full(scope: Any, receive: Any, send: Any) -> None:
    raise OperationalError("database or disk is full")


async def endless(scope: Any, receive: Any, send: Any) -> None:
    await asyncio.Event().wait()


async def stopped(scope: Any, receive: Any, send: Any) -> None:
    app()


async def begun(scope: Any, receive: Any, send: Any) -> None:
    await send({"type": "http.response.start", "status": 200, "headers": []})
    await send({"type": "http.response.body", "body": b"begun", "more_body": True})
    raise KeyError("late")


async def test_failures_have_the_api_s_shape() -> None:
    async with client(failing) as web:
        answer = await web.get("/v1/models", headers={"Origin": PAGE})
        assert (answer.status_code, answer.headers["connection"]) == (500, "close")
        assert answer.json()["error"]["type"] == "server_error"
        assert "secret" not in answer.text
        assert answer.headers["access-control-allow-origin"] == "*"
        assert answer.headers["x-frame-options"] == "DENY"
    async with client(stopped) as web:
        answer = await web.get("/healthz")
        assert (answer.status_code, answer.json()["error"]["field"]) == (503, None)
    async with client(full) as web:
        answer = await web.get("/v1/models")
        assert answer.status_code == 503
        assert "disk" in answer.json()["error"]["message"]
        assert answer.headers["retry-after"]


async def test_a_stop_is_a_503_in_the_api_s_shape() -> None:
    sent: list[Any] = []

    async def send(message: Any) -> None:
        sent.append(message)

    scope = {"type": "http", "method": "GET", "path": "/v1/models", "headers": [], "client": None}
    work = asyncio.create_task(Edge(endless, settings.ENV)(scope, _nothing, send))
    await asyncio.sleep(0)
    work.cancel()
    await work
    assert sent[0]["status"] == 503
    assert b'"service_unavailable_error"' in sent[1]["body"]


async def test_nothing_is_added_to_an_answer_that_has_begun() -> None:
    sent: list[Any] = []

    async def send(message: Any) -> None:
        sent.append(message)

    scope = {"type": "http", "method": "GET", "path": "/", "headers": [], "client": None}
    await Edge(begun, settings.ENV)(scope, _nothing, send)
    assert [message["type"] for message in sent] == ["http.response.start", "http.response.body"]


async def _nothing() -> dict[str, Any]:
    return {"type": "http.disconnect"}


# ---- bodies


async def test_a_large_body_needs_a_key_or_a_login(
    live: str, program: httpx.AsyncClient, member: httpx.AsyncClient
) -> None:
    text = {**ASKING, "messages": [{"role": "user", "content": "word " * 20_000}]}
    key = {"Authorization": program.headers["Authorization"]}
    async with httpx.AsyncClient(base_url=live) as web:
        for headers in ({}, {"Authorization": "Bearer canopy_x_y"}, {"Cookie": "canopy_session=x"}):
            refused = await web.post("/v1/chat/completions", json=text, headers=headers)
            assert (refused.status_code, refused.headers["connection"]) == (401, "close")
            assert refused.json()["error"]["code"] == "invalid_api_key"
            streamed = await web.post(
                "/v1/chat/completions", content=parts(200_000), headers=headers
            )
            assert streamed.status_code == 401
        assert (await web.post("/v1/chat/completions", json=text, headers=key)).status_code == 200
    named = {"title": "t", "padding": "a" * 100_000}
    assert (await member.post("/api/conversations", json=named)).status_code in (200, 201)


async def test_too_large_a_body_is_refused_before_it_is_sent(
    live: str, program: httpx.AsyncClient
) -> None:
    port = int(live.rpartition(":")[2])
    key = program.headers["Authorization"].encode()
    head = b"POST /v1/chat/completions HTTP/1.1\r\nHost: 127.0.0.1\r\nAuthorization: %b\r\n" % key
    async with asyncio.timeout(30):
        for more in (b"", b"Expect: 100-continue\r\n"):
            reader, writer = await asyncio.open_connection("127.0.0.1", port)
            writer.write(head + more + b"Content-Length: 2000000\r\n\r\n")
            assert (await reader.readline()).split()[1] == b"413"
            writer.close()
        async with httpx.AsyncClient(base_url=live, headers=program.headers) as web:
            refused = await web.post("/v1/chat/completions", content=parts(2_000_000))
            assert refused.status_code == 413


async def parts(size: int) -> AsyncIterator[bytes]:
    """A body without a Content-Length."""
    for _ in range(size // 50_000):
        yield b"a" * 50_000
