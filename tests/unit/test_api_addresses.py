"""Unknown addresses: a refusal in the client's shape that says what to change."""

from pathlib import Path

import httpx
import pytest
from django.conf import settings

from tests.unit.api_site import FakeClient
from tests.unit.openai_site import CHAT

BODY = {**CHAT, "prompt": "a"}


@pytest.mark.parametrize(
    ("path", "use"),
    [
        ("/chat/completions", "/v1/chat/completions"),
        ("//v1/chat/completions", "/v1/chat/completions"),
        ("/v1//chat/completions", "/v1/chat/completions"),
        ("/v1/v1/chat/completions", "/v1/chat/completions"),
        ("/v1/chat/completions/", "/v1/chat/completions"),
        ("/api/v1/chat/completions", "/v1/chat/completions"),
        ("/api/chat/completions", "/v1/chat/completions"),
        ("/openai/deployments/tiny/chat/completions", "/v1/chat/completions"),
        ("/v1/chat/completions/chat/completions", "/v1/chat/completions"),
        ("/completions", "/v1/completions"),
        ("/completions/", "/v1/completions"),
        ("/v1/engines/tiny/completions", "/v1/completions"),
        ("/models", "/v1/models"),
        ("/responses", "/v1/responses"),
        ("/v1/models/", "/v1/models"),
        ("//v1//models//", "/v1/models"),
        ("/models/Org/tiny", "/v1/models/Org/tiny"),
        ("/v1/batches/", "/v1/batches"),
        ("/v1/v1/jobs", "/v1/jobs"),
    ],
)
@pytest.mark.parametrize("method", ["GET", "POST"])
async def test_a_wrong_base_url_is_told_the_right_address(
    web: httpx.AsyncClient, method: str, path: str, use: str
) -> None:
    answer = await web.request(method, f"http://127.0.0.1{path}", json=BODY)
    error = answer.json()["error"]
    assert (answer.status_code, error["type"], error["param"]) == (
        404,
        "invalid_request_error",
        None,
    )
    assert f"use {use}: " in error["message"]
    assert error["message"].startswith(f"nothing is at {path}; ")


@pytest.mark.parametrize(
    "path",
    [
        "/v1",
        "/v1/",
        "/v1/nothing",
        "/v1/moderations",
        "/moderations",
        "/v1/audio/speech",
        "/v1/v1",
        "/v1/fine_tuning/jobs",
    ],
)
async def test_what_openai_has_and_this_has_not(web: httpx.AsyncClient, path: str) -> None:
    answer = await web.post(path, json=BODY)
    assert (answer.status_code, answer.json()["error"]["type"]) == (404, "invalid_request_error")
    message = answer.json()["error"]["message"]
    assert "this API has /v1/chat/completions, /v1/completions, " in message
    assert "/v1/batches, /v1/jobs" in message


@pytest.mark.parametrize(
    "path", ["/api/nothing", "/nothing", "/tree/not/this", "/api/conversations/x", "/v2/chat"]
)
async def test_other_addresses_have_the_other_shape(web: httpx.AsyncClient, path: str) -> None:
    answer = await web.get(path)
    assert (answer.status_code, answer.json()) == (
        404,
        {
            "error": {
                "message": f"nothing is at {path}",
                "field": None,
                "code": "not_found",
                "params": {},
            }
        },
    )


@pytest.mark.parametrize(
    ("path", "kind"),
    [
        ("/nothing", "text/html"),
        ("/<b>", "text/html"),
        ("/api/nothing", "application/json"),
        ("/v1/nothing", "application/json"),
    ],
)
async def test_people_get_a_page_and_programs_json(
    web: httpx.AsyncClient,
    path: str,
    kind: str,
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
) -> None:
    monkeypatch.setattr(settings, "FRONTEND_DIST", tmp_path)  # not built
    answer = await web.get(path, headers={"Accept": "text/html,*/*;q=0.8"})
    assert answer.status_code == 404
    assert answer.headers["Content-Type"].startswith(kind)
    assert "<b>" not in answer.text


@pytest.mark.parametrize("path", ["/v1/chat/completions", "/v1/completions", "/arranca/"])
@pytest.mark.parametrize("method", ["GET", "PUT", "DELETE", "PATCH"])
async def test_a_wrong_method_is_told_the_right_one(
    program: httpx.AsyncClient, method: str, path: str
) -> None:
    answer = await program.request(method, path)
    error = answer.json()["error"]
    assert (answer.status_code, answer.headers["Allow"]) == (405, "POST")
    assert error["message"] == f"{method} is not possible here; use POST"
    assert ("param" in error) == path.startswith("/v1")


@pytest.mark.parametrize(
    ("path", "use"),
    [
        ("/arranca", "use /arranca/, the slash at the end counts"),
        ("/api/conversations/", "use /api/conversations, without the slash at the end"),
        ("/api/login//", "use /api/login, without the slash at the end"),
    ],
)
async def test_slashes_at_the_end(
    program: httpx.AsyncClient, fake: FakeClient, path: str, use: str
) -> None:
    answer = await program.post(path, json={"text": "a", "timestamp": 1})
    assert (answer.status_code, answer.json()["error"]["message"]) == (
        404,
        f"nothing is at {path}; {use}",
    )
    assert fake.jobs == []


async def test_a_page_is_still_found_without_its_slash(web: httpx.AsyncClient) -> None:
    answer = await web.get("/tree")
    assert (answer.status_code, answer.headers["Location"]) == (301, "/tree/")


async def test_an_address_that_is_too_long_is_not_repeated(web: httpx.AsyncClient) -> None:
    answer = await web.get("/v1/" + "x" * 10_000)
    assert len(answer.json()["error"]["message"]) < 500
