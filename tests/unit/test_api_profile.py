"""A person's own account: the first password, a new one, keys, sessions, use, and its end."""

import httpx
import pytest
from asgiref.sync import sync_to_async
from django.contrib.sessions.models import Session

from api.accounts import tokens
from api.accounts.models import ApiKey, Login, User
from api.chat.models import Conversation, Message, Role
from tests.unit.api_site import FakeClient, beginning, browser, log_in, make_user, refresh_csrf

GOOD = "a long enough sentence"


async def error(answer: httpx.Response) -> tuple[int, str | None]:
    """Status and field."""
    return answer.status_code, answer.json()["error"]["field"]


async def by_link(client: httpx.AsyncClient, user: User) -> str:
    """Logs in by a link; where that leads."""
    token = await sync_to_async(tokens.create)(user)
    answer = await client.get("/login", params={"token": token})
    await client.get("/api/me")
    await refresh_csrf(client)
    return answer.headers["location"]


async def new_account(name: str) -> User:
    user = User(username=name)
    user.set_unusable_password()
    await user.asave()
    return user


async def test_an_account_without_a_password_gets_name_and_password_once(
    web: httpx.AsyncClient,
) -> None:
    user = await new_account("nobody-yet")
    assert await by_link(web, user) == "/welcome"
    assert (await web.get("/api/me")).json()["user"]["has_password"] is False
    start = {"name": "Ada", "password": GOOD}
    answer = await web.post("/api/account/start", json=start)
    assert answer.json() == {
        "name": "Ada",
        "staff": False,
        "has_password": True,
        "known_elsewhere": False,
        "confirmation": "password",
    }
    await refresh_csrf(web)
    assert (await web.get("/api/conversations")).status_code == 200, "the session goes on"
    assert (await web.post("/api/account/start", json=start)).status_code == 409
    async with browser() as other:
        await other.get("/api/me")
        await refresh_csrf(other)
        login = {"username": "Ada", "password": GOOD}
        assert (await other.post("/api/login", json=login)).status_code == 200
    assert await by_link(web, await User.objects.aget(pk=user.pk)) == "/"


@pytest.mark.parametrize(
    ("name", "password", "field"),
    [("a b", GOOD, "name"), ("taken", GOOD, "name"), ("fine", "short", "password")],
)
async def test_a_first_name_or_password_that_is_not_allowed(
    web: httpx.AsyncClient, name: str, password: str, field: str
) -> None:
    await User.objects.aget_or_create(username="taken")
    user, _ = await User.objects.aget_or_create(username=f"fresh-{field}-{name[:1]}")
    user.set_unusable_password()
    await user.asave()
    await by_link(web, user)
    answer = await web.post("/api/account/start", json={"name": name, "password": password})
    assert await error(answer) == (400, field)
    assert not (await User.objects.aget(pk=user.pk)).has_usable_password()


async def test_a_new_password_ends_the_other_sessions(
    member: httpx.AsyncClient, user: User
) -> None:
    async with browser() as other:
        await log_in(other, user)
        wrong = {"current": "wrong", "new": GOOD}
        assert await error(await member.post("/api/account/password", json=wrong)) == (
            400,
            "current",
        )
        weak = {"current": "secret password", "new": "password"}
        assert await error(await member.post("/api/account/password", json=weak)) == (400, "new")
        assert (await other.get("/api/conversations")).status_code == 200
        change = {"current": "secret password", "new": GOOD}
        assert (await member.post("/api/account/password", json=change)).status_code == 204
        assert (await other.get("/api/conversations")).status_code == 401
    assert (await member.get("/api/conversations")).status_code == 200
    assert await Login.objects.filter(user=user).acount() == 1
    keys = await Session.objects.acount()
    assert keys >= 1


async def test_a_key_is_shown_once_used_and_revoked(member: httpx.AsyncClient, user: User) -> None:
    created = (await member.post("/api/account/keys", json={"label": " my script "})).json()
    assert created["key"].startswith(f"canopy_{created['name']}_")
    assert created["label"] == "my script"
    async with browser() as program:
        program.headers["Authorization"] = f"Bearer {created['key']}"
        assert (await program.get("/v1/models")).status_code == 200
        [listed] = (await member.get("/api/account/keys")).json()["keys"]
        assert "key" not in listed
        assert listed["last_used"] is not None
        address = f"/api/account/keys/{created['id']}"
        assert (await member.delete(address)).status_code == 204
        assert (await program.get("/v1/models")).status_code == 401
    assert (await member.delete(address)).status_code == 404
    assert (await member.get("/api/account/keys")).json() == {"keys": []}


async def test_keys_and_sessions_of_others_are_not_there(member: httpx.AsyncClient) -> None:
    stranger = await make_user()
    key = await ApiKey.objects.acreate(user=stranger, name="strange", digest="x")
    async with browser() as other:
        await log_in(other, stranger)
        login = await Login.objects.aget(user=stranger)
        assert (await member.delete(f"/api/account/keys/{key.pk}")).status_code == 404
        assert (await member.delete(f"/api/account/sessions/{login.pk}")).status_code == 404
        assert (await other.get("/api/conversations")).status_code == 200


async def test_sessions_are_listed_and_ended(member: httpx.AsyncClient, user: User) -> None:
    async with browser() as phone, browser() as tablet:
        phone.headers["User-Agent"] = "Phone"
        await log_in(phone, user)
        await log_in(tablet, user)
        sessions = (await member.get("/api/account/sessions")).json()["sessions"]
        assert [each["current"] for each in sessions].count(True) == 1
        [of_phone] = [each for each in sessions if each["browser"] == "Phone"]
        ended = await member.delete(f"/api/account/sessions/{of_phone['id']}")
        assert ended.status_code == 204
        assert (await phone.get("/api/conversations")).status_code == 401
        assert (await tablet.get("/api/conversations")).status_code == 200
        assert (await member.post("/api/account/sessions/end-others")).status_code == 204
        assert (await tablet.get("/api/conversations")).status_code == 401
    [own] = (await member.get("/api/account/sessions")).json()["sessions"]
    assert own["current"] is True


async def test_a_session_that_is_logged_out_is_not_listed(
    member: httpx.AsyncClient, user: User
) -> None:
    async with browser() as other:
        await log_in(other, user)
        await other.post("/api/logout")
    assert len((await member.get("/api/account/sessions")).json()["sessions"]) == 1


async def test_use_by_day_and_model(member: httpx.AsyncClient, user: User) -> None:
    mine = await Conversation.objects.acreate(user=user, model="tiny")
    others = await Conversation.objects.acreate(user=await make_user(), model="tiny")
    for conversation, model in ((mine, "tiny"), (mine, "tiny"), (mine, "big"), (others, "tiny")):
        await Message.objects.acreate(
            conversation=conversation,
            role=Role.ASSISTANT,
            model=model,
            prompt_tokens=3,
            completion_tokens=5,
        )
    use = (await member.get("/api/account/usage")).json()["use"]
    figures = [(each["model"], each["requests"], each["completion_tokens"]) for each in use]
    assert figures == [("big", 1, 5), ("tiny", 2, 10)]
    assert (await member.get("/api/account/usage?days=0")).status_code == 400


async def test_an_account_ends_with_all_that_belongs_to_it(
    member: httpx.AsyncClient, user: User, fake: FakeClient
) -> None:
    fake.script = beginning("and")
    conversation = (await member.post("/api/conversations", json={})).json()["id"]
    await member.post(f"/api/conversations/{conversation}/messages", json={"content": "go on"})
    wrong = await member.post("/api/account/delete", json={"password": "wrong"})
    assert await error(wrong) == (400, "password")
    answer = await member.post("/api/account/delete", json={"password": "secret password"})
    assert answer.status_code == 204
    assert fake.cancelled or fake.cancels
    assert not await User.objects.filter(pk=user.pk).aexists()
    assert not await Conversation.objects.filter(pk=conversation).aexists()
    assert (await member.get("/api/me")).json()["user"] is None


async def test_the_only_administrator_stays(web: httpx.AsyncClient, fake: FakeClient) -> None:
    await User.objects.filter(is_superuser=True).aupdate(is_superuser=False)
    admin = await make_user(is_superuser=True)
    await log_in(web, admin)
    answer = await web.post("/api/account/delete", json={"password": "secret password"})
    assert answer.status_code == 409
    assert "only administrator" in answer.json()["error"]["message"]
