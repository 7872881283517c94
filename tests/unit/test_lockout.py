"""Wrong passwords lock a login for a while; wrong keys and links are bounded by address."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from datetime import UTC, datetime, timedelta

import httpx
import pytest
from asgiref.sync import sync_to_async
from axes.models import AccessAttempt

from api.accounts import guesses, lockout
from api.accounts.models import User
from api.context import app
from api.server.response_headers import client_of
from tests.unit.api_site import browser, make_user, refresh_csrf

NOW = datetime(2026, 1, 1, tzinfo=UTC)
RIGHT = "secret password"


@asynccontextmanager
async def somewhere(address: str) -> AsyncIterator[httpx.AsyncClient]:
    """A browser at another address, behind the local proxy."""
    async with browser() as client:
        client.headers["X-Forwarded-For"] = address
        await client.get("/api/me")
        await refresh_csrf(client)
        yield client


async def guess(client: httpx.AsyncClient, name: str, password: str = "wrong") -> httpx.Response:
    await refresh_csrf(client)
    return await client.post("/api/login", json={"username": name, "password": password})


def ago(seconds: float) -> datetime:
    return NOW - timedelta(seconds=seconds)


def test_a_lock_ends_when_enough_failures_are_old() -> None:
    assert lockout.locked_until([], 3) is None
    assert lockout.locked_until([(ago(10), 2)], 3) is None
    assert lockout.locked_until([(ago(10), 3)], 3) == ago(10) + lockout.WINDOW
    spread = [(ago(30), 5), (ago(20), 2), (ago(10), 1)]
    assert lockout.locked_until(spread, 3) == ago(20) + lockout.WINDOW


async def test_forty_guesses_at_once_do_not_go_through(user: User) -> None:
    async with somewhere("203.0.113.1") as client:
        tries = [guess(client, user.username) for _ in range(39)]
        answers = await asyncio.gather(*tries, guess(client, user.username, RIGHT))
        assert {answer.status_code for answer in answers} <= {400, 429}
        for _ in range(lockout.MOST_OF_PAIR):
            locked = await guess(client, user.username)
        right = await guess(client, user.username, RIGHT)
    assert sum(answer.status_code == 400 for answer in answers) < lockout.MOST_OF_PAIR
    for answer in (locked, right):
        error = answer.json()["error"]
        assert (answer.status_code, error["code"]) == (429, "login_locked")
        assert "not even with the right one" in error["message"]
        assert 0 < int(answer.headers["Retry-After"]) <= lockout.WINDOW.total_seconds()


async def test_other_accounts_and_other_addresses_go_on(user: User) -> None:
    async with somewhere("203.0.113.1") as client, somewhere("203.0.113.2") as elsewhere:
        for _ in range(lockout.MOST_OF_PAIR + 1):
            await guess(client, user.username)
        other = await make_user()
        assert (await guess(elsewhere, other.username, RIGHT)).status_code == 200
        assert (await guess(client, other.username, RIGHT)).status_code == 200
        assert (await guess(client, user.username, RIGHT)).status_code == 429
        assert (await guess(elsewhere, user.username, RIGHT)).status_code == 200
        await sync_to_async(lockout.unlock)(user.username)
        assert (await guess(client, user.username, RIGHT)).status_code == 200


async def test_a_login_forgets_the_wrong_ones_before_it(user: User) -> None:
    async with somewhere("203.0.113.1") as client:
        for _ in range(3):
            for _ in range(lockout.MOST_OF_PAIR - 1):
                assert (await guess(client, user.username)).status_code == 400
            assert (await guess(client, user.username, RIGHT)).status_code == 200


async def failed(name: str, address: str, failures: int) -> None:
    await AccessAttempt.objects.acreate(
        username=name, ip_address=address, user_agent="x", failures_since_start=failures
    )


async def test_guesses_from_everywhere_lock_an_account_but_not_its_own_address(user: User) -> None:
    async with somewhere("203.0.113.7") as home:
        assert (await guess(home, user.username, RIGHT)).status_code == 200
        for number in range(lockout.MOST_OF_ACCOUNT):
            await failed(user.username, f"198.51.100.{number}", 1)
        async with somewhere("203.0.113.8") as stranger:
            assert (await guess(stranger, user.username, RIGHT)).status_code == 429
        assert (await guess(home, user.username, RIGHT)).status_code == 200


async def test_one_address_may_not_try_many_accounts(user: User) -> None:
    for number in range(lockout.MOST_OF_ADDRESS):
        await failed(f"name{number}", "203.0.113.9", 1)
    async with somewhere("203.0.113.9") as client, somewhere("203.0.113.10") as elsewhere:
        assert (await guess(client, user.username, RIGHT)).status_code == 429
        assert (await guess(elsewhere, user.username, RIGHT)).status_code == 200


async def test_the_admins_login_is_locked_with_a_page(user: User) -> None:
    async with somewhere("203.0.113.1") as client:
        await client.get("/admin/login/")
        await refresh_csrf(client)
        form = {"username": user.username, "password": "wrong"}
        for _ in range(lockout.MOST_OF_PAIR):
            last = await client.post("/admin/login/", data=form)
        right = {**form, "password": RIGHT}
        for answer in (last, await client.post("/admin/login/", data=right)):
            assert answer.status_code == 429
            assert "Too many wrong passwords" in answer.text
            assert int(answer.headers["Retry-After"]) > 0
        assert (await guess(client, user.username, RIGHT)).status_code == 429, "one count for both"
    stored = await AccessAttempt.objects.aget(username=user.username)
    assert "wrong" not in stored.post_data


async def test_the_present_password_cannot_be_guessed_by_changing_it(
    member: httpx.AsyncClient,
) -> None:
    change = {"current": "wrong", "new": "another good sentence"}
    for _ in range(lockout.MOST_OF_PAIR):
        answer = await member.post("/api/account/password", json=change)
    assert answer.json()["error"]["code"] == "login_locked"
    right = {**change, "current": RIGHT}
    assert (await member.post("/api/account/password", json=right)).status_code == 429


async def test_login_links_are_bounded_by_address(web: httpx.AsyncClient, user: User) -> None:
    for number in range(guesses.MOST):
        app().guesses.wrong("203.0.113.5", str(number))
    async with somewhere("203.0.113.5") as client:
        answer = await client.get("/login", params={"token": f"{user.pk}-x"})
        assert (answer.status_code, answer.json()["error"]["code"]) == (429, "too_many_guesses")
        assert 0 < int(answer.headers["Retry-After"]) <= guesses.WINDOW
    assert (await web.get("/login", params={"token": f"{user.pk}-x"})).status_code == 403


def test_guesses_are_forgotten_with_their_window() -> None:
    now = 0.0
    counted = guesses.Guesses(lambda: now)
    for number in range(guesses.MOST):
        for _ in range(2):
            counted.check("a", str(number))
            counted.wrong("a", str(number))
    with pytest.raises(Exception, match="try again in 60 s"):
        counted.check("a", "x")
    counted.check("b", "x")
    now = guesses.WINDOW
    counted.check("a", "x")


@pytest.mark.parametrize(
    ("peer", "forwarded", "expected"),
    [
        ("10.0.0.1", None, "10.0.0.1"),
        ("10.0.0.1", "1.2.3.4", "1.2.3.4"),
        ("10.0.0.1", "6.6.6.6, 1.2.3.4, 10.0.0.2", "1.2.3.4"),
        ("10.0.0.1", "1.2.3.4, nonsense", "10.0.0.1"),
        ("10.0.0.1", "2001:db8::1", "2001:db8::1"),
        ("8.8.8.8", "1.2.3.4", "8.8.8.8"),
    ],
)
def test_a_client_behind_a_proxy(peer: str, forwarded: str | None, expected: str) -> None:
    import ipaddress

    fields = {} if forwarded is None else {b"x-forwarded-for": forwarded.encode()}
    proxies = [ipaddress.ip_network("10.0.0.0/8")]
    assert client_of({"client": (peer, 1)}, fields, proxies)[0] == expected


async def test_old_wrong_passwords_are_forgotten(
    user: User, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(lockout, "FORGET_EVERY", 0.0)
    old = datetime.now(UTC) - lockout.WINDOW - timedelta(minutes=1)
    await AccessAttempt.objects.acreate(
        username=user.username, ip_address="192.0.2.77", failures_since_start=1
    )
    rows = AccessAttempt.objects.filter(username=user.username)
    await rows.aupdate(attempt_time=old)
    forgetting = asyncio.create_task(lockout.forget_repeatedly())
    async with asyncio.timeout(10):
        while await rows.aexists():  # noqa: ASYNC110 - only the database knows
            await asyncio.sleep(0)
    forgetting.cancel()
