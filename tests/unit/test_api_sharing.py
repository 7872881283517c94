"""Shared links: a snapshot for everybody who has the link, until it is revoked."""

import httpx
import pytest

from api.chat.models import Share
from api.sharing import shares
from tests.unit.api_site import FakeClient, until
from tests.unit.dialogues import begin, writer_of


async def shared(member: httpx.AsyncClient, content: str = "for all") -> tuple[str, str, int]:
    """A shared conversation: its address, the link's token, and the share's id."""
    home, answer = await begin(member, content)
    await until(lambda: not writer_of(answer))
    made = await member.post(f"{home}/shares")
    assert made.status_code == 201, made.text
    return home, made.json()["path"].removeprefix("/s/"), made.json()["id"]


async def test_a_link_shows_the_branch_as_it_was(
    member: httpx.AsyncClient, web: httpx.AsyncClient, fake: FakeClient
) -> None:
    home, token, _ = await shared(member)
    await member.post(f"{home}/messages", json={"content": "a later secret"})
    answer = await web.get(f"/api/shared/{token}")
    assert answer.status_code == 200, answer.text
    found = answer.json()
    assert set(found) == {"title", "created", "messages"}
    assert found["messages"] == [
        {"role": "user", "content": "for all", "model": "", "attachments": []},
        {"role": "assistant", "content": "for all", "model": "tiny", "attachments": []},
    ]
    assert answer.headers["Cache-Control"] == "no-store"
    assert answer.headers["X-Robots-Tag"] == "noindex, nofollow"
    assert answer.headers["Referrer-Policy"] == "no-referrer"
    page = await web.get(f"/s/{token}")
    assert page.headers["X-Robots-Tag"] == "noindex, nofollow"


async def test_the_token_is_not_stored(member: httpx.AsyncClient, fake: FakeClient) -> None:
    _, token, number = await shared(member)
    share = await Share.objects.aget(pk=number)
    assert len(token) >= 22  # 128 bits
    assert token not in (share.digest + share.content)
    listed = (await member.get("/api/shares")).json()["shares"]
    assert [each["id"] for each in listed] == [number]
    assert "path" not in listed[0]


async def test_revoked_and_deleted_ones_are_gone(
    member: httpx.AsyncClient, staff: httpx.AsyncClient, web: httpx.AsyncClient, fake: FakeClient
) -> None:
    _, token, number = await shared(member)
    assert (await staff.delete(f"/api/shares/{number}")).status_code == 404
    assert (await member.delete(f"/api/shares/{number}")).status_code == 204
    assert (await web.get(f"/api/shared/{token}")).status_code == 404
    home, token, _ = await shared(member)
    await member.delete(home)
    assert (await web.get(f"/api/shared/{token}")).status_code == 404
    await member.post(f"{home}/restore")
    assert (await web.get(f"/api/shared/{token}")).status_code == 200


async def test_nothing_to_share_and_too_many(
    member: httpx.AsyncClient,
    staff: httpx.AsyncClient,
    fake: FakeClient,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    made = (await member.post("/api/conversations", json={})).json()
    assert (await member.post(f"/api/conversations/{made['id']}/shares")).status_code == 409
    home, _, _ = await shared(member)
    assert (await staff.post(f"{home}/shares")).status_code == 404
    monkeypatch.setattr(shares, "MOST_SHARES", 1)
    assert (await member.post(f"{home}/shares")).status_code == 409


@pytest.mark.parametrize("token", ["x", "x" * 5000, "%F0%9F%8C%B3", "a%00b"])
async def test_wrong_tokens(web: httpx.AsyncClient, token: str) -> None:
    assert (await web.get(f"/api/shared/{token}")).status_code == 404
