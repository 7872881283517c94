"""Bodies: their encoding, their texts and numbers, their depth. Numbers in addresses."""

import gzip
import json
import zlib
from typing import Any

import httpx
import pytest
from django.conf import settings
from django.contrib.sessions.backends.db import SessionStore

from api.chat.models import Conversation, Message
from api.context import app
from api.http.parsing import MAX_LEVELS
from api.idempotency.models import KeptRequest
from broker.wire import Failed
from tests.unit.api_site import FakeClient, until

CHAT = {"model": "tiny", "messages": [{"role": "user", "content": "one two three"}]}
PATH = "/v1/chat/completions"
HALVES = ["\ud83d", "\ude00", "\ude00\ud83d", "\ud83d\ud83d", "\ud83dx\ude00"]


def nested(levels: int) -> Any:
    """That many lists inside each other."""
    value: Any = "core"
    for _ in range(levels):
        value = [value]
    return value


# ---- objects


@pytest.mark.parametrize(
    ("path", "body", "field"),
    [
        (PATH, [], "body"),
        (PATH, None, "body"),
        (PATH, {**CHAT, "response_format": "json_object"}, "response_format"),
        (PATH, {**CHAT, "stream_options": True}, "stream_options"),
        (PATH, {**CHAT, "messages": ["hello"]}, "messages[0]"),
        ("/v1/responses", {"model": "tiny", "input": "a", "text": "plain"}, "text"),
        ("/v1/responses", {"model": "tiny", "input": "a", "metadata": []}, "metadata"),
    ],
)
async def test_what_is_no_object_is_refused_without_the_names_of_classes(
    program: httpx.AsyncClient, path: str, body: Any, field: str
) -> None:
    answer = await program.post(path, content=json.dumps(body))
    error = answer.json()["error"]
    told = (answer.status_code, error["message"], error["param"])
    assert told == (400, f"{field}: must be an object", field)


# ---- texts


@pytest.mark.parametrize("half", HALVES)
@pytest.mark.parametrize("escaped", [True, False])
async def test_halves_of_characters_become_replacement_characters(
    program: httpx.AsyncClient, fake: FakeClient, half: str, escaped: bool
) -> None:
    body = {
        **CHAT,
        "messages": [{"role": "user", "content": f"a{half}🌳\\ud83d"}],
        "stop": [half],
        "user": half,
    }
    content = json.dumps(body, ensure_ascii=escaped).encode("utf-8", "surrogatepass")
    answer = await program.post(PATH, content=content)
    whole = half.replace("\ud83d", "\ufffd").replace("\ude00", "\ufffd")
    assert answer.status_code == 200, answer.text
    [job] = fake.jobs
    assert job.messages is not None
    assert job.messages[0].content == f"a{whole}🌳\\ud83d"
    assert job.sampling.stop == (whole,)


async def test_halves_that_belong_together_are_one_character(
    program: httpx.AsyncClient, fake: FakeClient
) -> None:
    content = json.dumps({"model": "tiny", "prompt": "🌳 \ud83d"}, ensure_ascii=False)
    as_two_characters = content.replace("🌳", "\ud83c\udf33").encode("utf-8", "surrogatepass")
    assert (await program.post("/v1/completions", content=as_two_characters)).status_code == 200
    assert fake.jobs[0].prompt == "🌳 \ufffd"


@pytest.mark.parametrize(
    ("written", "text"),
    [
        (r"\ud83c\udf33\ud83c", "🌳\ufffd"),
        (r"\uD83C\uDF33\uDF33", "🌳\ufffd"),
        (r"\\ud83c\ud83c", "\\ud83c\ufffd"),
        (r"\\ud83c\udf33", "\\ud83c\ufffd"),
        (r"\\\ud83c\\\\udf33", "\\\ufffd\\\\udf33"),
        (r"\ud83c\\udf33", "\ufffd\\udf33"),
        (r"\n\udf33\u00e9", "\n\ufffd\u00e9"),
    ],
)
async def test_escapes_among_backslashes(
    program: httpx.AsyncClient, fake: FakeClient, written: str, text: str
) -> None:
    content = '{"model": "tiny", "prompt": "' + written + '"}'
    assert (await program.post("/v1/completions", content=content)).status_code == 200
    assert fake.jobs[0].prompt == text


async def test_half_a_character_as_the_name_of_a_field(program: httpx.AsyncClient) -> None:
    assert (await program.post(PATH, content=json.dumps({**CHAT, "\ud83d": 1}))).status_code == 200


@pytest.mark.parametrize("bad", ["\ud83d", "\x00"])
async def test_a_cut_character_does_not_spoil_a_conversation(
    member: httpx.AsyncClient, bad: str
) -> None:
    conversation = (
        await member.post("/api/conversations", content=json.dumps({"model": "tiny"}))
    ).json()
    here = f"/api/conversations/{conversation['id']}"
    renamed = await member.patch(here, content=json.dumps({"title": f"cut {bad}"}))
    assert (renamed.status_code, renamed.json()["title"]) == (200, "cut \ufffd")
    for content in (f"first {bad}", "second"):
        turn = await member.post(f"{here}/messages", content=json.dumps({"content": content}))
        assert turn.status_code == 201, turn.text
        await member.get(f"{here}/messages/{turn.json()['assistant_message']['id']}/stream")
    stored = [
        each.content async for each in Message.objects.filter(conversation=conversation["id"])
    ]
    assert stored == ["first \ufffd", "first \ufffd", "second", "second"]
    assert (await Conversation.objects.aget(pk=conversation["id"])).title == "cut \ufffd"


async def test_a_cut_character_elsewhere(member: httpx.AsyncClient, web: httpx.AsyncClient) -> None:
    asked = json.dumps({"text": "a \ud83d", "timestamp": "\udc00"})
    answer = await member.post("/arranca/", content=asked)
    assert (answer.json()["text"], answer.json()["timestamp"]) == ("a \ufffd", "\ufffd")
    me = await web.get("/api/me")
    web.headers["X-CSRFToken"] = me.cookies["csrftoken"]
    for name in ("\ud83d", "a\x00b"):
        refused = await web.post(
            "/api/login", content=json.dumps({"username": name, "password": name})
        )
        assert (refused.status_code, refused.json()["error"]["field"]) == (400, "password")


@pytest.mark.parametrize("cookie", [r'"abc\\000defghijk"', "abcdefgh-ijk", "schlüssel", ""])
async def test_keys_of_sessions_that_django_never_makes_are_not_looked_up(
    web: httpx.AsyncClient, monkeypatch: pytest.MonkeyPatch, cookie: str
) -> None:
    opened: list[str | None] = []
    init = SessionStore.__init__

    def noting(self: SessionStore, session_key: str | None = None) -> None:
        opened.append(session_key)
        init(self, session_key)

    monkeypatch.setattr(SessionStore, "__init__", noting)
    headers = {b"Cookie": f"{settings.SESSION_COOKIE_NAME}={cookie}".encode()}
    answer = await web.get("/api/me", headers=headers)
    assert (answer.status_code, answer.json()["user"]) == (200, None)
    assert opened == [None]


async def test_a_node_that_blames_a_nul(member: httpx.AsyncClient, fake: FakeClient) -> None:
    fake.script = lambda job: [
        Failed(request_id=job.request_id, code="engine", message="what is a\x00b?")
    ]
    made = (await member.post("/api/conversations", json={})).json()
    turn = (
        await member.post(f"/api/conversations/{made['id']}/messages", json={"content": "x"})
    ).json()
    answer = turn["assistant_message"]["id"]
    await until(lambda: not app().writers.handles())
    assert (await Message.objects.aget(pk=answer)).error == "what is a\ufffdb?"


async def test_a_mark_of_the_byte_order(program: httpx.AsyncClient) -> None:
    assert (
        await program.post(PATH, content=json.dumps(CHAT).encode("utf-8-sig"))
    ).status_code == 200


# ---- numbers and depth


@pytest.mark.parametrize(
    "field", ["tomorrow", "temperature", "max_tokens", "seed", "logit_bias", "messages", "n"]
)
@pytest.mark.parametrize(
    "number", ["1e400", "-1e400", "1" + "0" * 400, "1" + "0" * 5000, "NaN", "-Infinity"]
)
@pytest.mark.parametrize("key", [{}, {"Idempotency-Key": "numbers"}])
async def test_numbers_beyond_all_measure(
    program: httpx.AsyncClient, fake: FakeClient, field: str, number: str, key: dict[str, str]
) -> None:
    content = json.dumps({**CHAT, field: "HERE"}).replace('"HERE"', number)
    answer = await program.post(PATH, content=content, headers=key)
    assert answer.status_code == 400, answer.text
    assert fake.jobs == []
    assert not await KeptRequest.objects.aexists()


@pytest.mark.parametrize("path", [PATH, "/v1/completions", "/arranca/", "/api/conversations"])
@pytest.mark.parametrize("levels", [MAX_LEVELS, 900, 950, 990, 100_000])
async def test_documents_that_are_too_deep(
    program: httpx.AsyncClient, fake: FakeClient, path: str, levels: int
) -> None:
    asked = json.dumps({**CHAT, "prompt": "a", "text": "a", "timestamp": 1, "tomorrow": "HERE"})
    content = asked.replace('"HERE"', "[" * levels + "]" * levels)
    answer = await program.post(path, content=content, headers={"Idempotency-Key": "deep"})
    assert answer.status_code == 400, answer.text
    assert "body" in answer.json()["error"]["message"]
    assert fake.jobs == []
    assert not await KeptRequest.objects.aexists()


async def test_what_is_as_deep_as_allowed_is_taken_with_a_key(program: httpx.AsyncClient) -> None:
    body = {**CHAT, "tomorrow": nested(MAX_LEVELS - 2), "large": [2**64 - 1, -(2**63)]}
    answer = await program.post(PATH, json=body, headers={"Idempotency-Key": "deep enough"})
    assert answer.status_code == 200, answer.text


async def test_the_last_of_two_fields_of_one_name_counts(
    program: httpx.AsyncClient, fake: FakeClient
) -> None:
    content = json.dumps(CHAT).removesuffix("}") + ', "max_tokens": 3, "max_tokens": 4}'
    assert (
        await program.post(PATH, content=content, headers={"Idempotency-Key": "two"})
    ).status_code == 200
    assert fake.jobs[0].sampling.max_tokens == 4


# ---- content encodings


@pytest.mark.parametrize("name", ["gzip", "x-gzip", "GZIP"])
async def test_gzip_bodies_are_inflated(
    program: httpx.AsyncClient, fake: FakeClient, name: str
) -> None:
    headers = {"Content-Encoding": name, "Idempotency-Key": f"zipped {name}"}
    packed = gzip.compress(json.dumps(CHAT).encode())
    first = await program.post(PATH, content=packed, headers=headers)
    again = await program.post(PATH, json=CHAT, headers={"Idempotency-Key": f"zipped {name}"})
    assert (first.status_code, again.headers["Idempotent-Replay"]) == (200, "true")
    assert first.json() == again.json()
    await until(lambda: len(fake.jobs) == 1)


@pytest.mark.parametrize(
    ("packed", "status"),
    [
        (gzip.compress(b" " * 1_000_001), 413),
        (gzip.compress(b"0" * 20_000_000), 413),
        (gzip.compress(json.dumps(CHAT).encode())[:-9], 400),
        (gzip.compress(json.dumps(CHAT).encode()) + b"more", 400),
        (gzip.compress(b" ") + gzip.compress(json.dumps(CHAT).encode()), 400),
        (zlib.compress(json.dumps(CHAT).encode()), 400),
        (b"not gzip", 400),
    ],
    ids=[
        "large",
        "huge",
        "cut",
        "more behind",
        "two members",
        "zlib",
        "no gzip",
    ],  # no times in them
)
async def test_gzip_bodies_that_are_none_or_too_large(
    program: httpx.AsyncClient, fake: FakeClient, packed: bytes, status: int
) -> None:
    answer = await program.post(PATH, content=packed, headers={"Content-Encoding": "gzip"})
    assert answer.status_code == status, answer.text
    assert answer.json()["error"]["message"]
    assert fake.jobs == []


@pytest.mark.parametrize("name", ["br", "deflate", "zstd", "gzip, gzip", "compress"])
@pytest.mark.parametrize("path", [PATH, "/arranca/", "/api/conversations"])
async def test_other_encodings_are_named(program: httpx.AsyncClient, path: str, name: str) -> None:
    answer = await program.post(path, content=json.dumps(CHAT), headers={"Content-Encoding": name})
    assert (answer.status_code, answer.headers["Accept-Encoding"]) == (415, "gzip, identity")
    assert answer.json()["error"]["message"].startswith("Content-Encoding: ")


# ---- numbers in addresses


@pytest.mark.parametrize(
    "number", [str(2**63 - 1), str(2**63), str(2**64), "9" * 30, "9" * 5000], ids=len
)
@pytest.mark.parametrize(
    ("method", "address"),
    [
        ("GET", "/api/conversations/{}"),
        ("PATCH", "/api/conversations/{}"),
        ("DELETE", "/api/conversations/{}"),
        ("POST", "/api/conversations/{}/messages"),
        ("GET", "/api/conversations/1/messages/{}/stream"),
        ("GET", "/api/conversations/{}/messages/1/stream"),
        ("POST", "/api/conversations/1/messages/{}/stop"),
        ("GET", "/c/{}/"),
        ("GET", "/api/jobs/{}"),
        ("GET", "/v1/models/{}"),
    ],
)
async def test_numbers_that_no_row_has(
    member: httpx.AsyncClient, method: str, address: str, number: str
) -> None:
    body = {"content": "hello"} if method in {"POST", "PATCH"} else None
    answer = await member.request(method, address.format(number), json=body)
    assert answer.status_code in {404, 401}, answer.text
    assert (answer.status_code == 401) == address.startswith("/v1/")


@pytest.mark.parametrize("number", [2**63, 10**30])
@pytest.mark.parametrize(
    "address",
    [
        "accounts/user/{}/change/",
        "accounts/user/{}/delete/",
        "accounts/user/{}/history/",
        "accounts/user/{}/password/",
        "accounts/user/?p={}",
        "accounts/user/?groups__id__exact={}",
        "chat/conversation/{}/change/",
        "chat/conversation/?user__id__exact={}",
        "chat/conversation/?id={}",
        "kept/keptrequest/{}/change/",
        "kept/keptrequest/?user__id__exact={}",
        "kept/keptrequest/?q={}",
        "r/1/{}/",
        "r/{}/1/",
    ],
)
async def test_numbers_that_no_row_has_in_the_admin(
    fake: FakeClient, staff: httpx.AsyncClient, number: int, address: str
) -> None:
    from api.accounts.models import User

    await User.objects.aupdate(is_superuser=True)
    answer = await staff.get(f"/admin/{address.format(number)}")
    assert answer.status_code in {200, 302, 403, 404}, answer.text[:500]


async def test_a_text_that_is_too_long_is_counted_in_characters(member: httpx.AsyncClient) -> None:
    answer = await member.post("/api/conversations", json={"content": "x" * 100_001})
    error = answer.json()["error"]
    assert error["message"] == "content: must have at most 100000 characters, not 100001"
    assert (error["code"], error["params"]["bound"]) == ("too_many_characters", 100_000)
