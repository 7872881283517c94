"""Accounts from the command line, and what becomes of a disabled user's sessions and requests."""

import argparse
import asyncio
import dataclasses
import io
import json
from collections.abc import Callable
from typing import Any

import httpx
import pytest
from asgiref.sync import sync_to_async
from django.conf import settings
from django.contrib.sessions.models import Session

from api.accounts import commands, key_cache, people, revocation
from api.accounts.models import Login, User
from api.identities import settings as identity_settings
from api.operate.audit.models import AuditEntry
from tests.unit.api_site import FakeClient, beginning, log_in, make_user, until

pytestmark = pytest.mark.usefixtures("fake")


@sync_to_async
def command(*words: str) -> int:
    """`python -m api user …` without its start-up."""
    parser = argparse.ArgumentParser()
    commands.add_arguments(parser)
    return commands.run(parser.parse_args(words))


async def account(capsys: pytest.CaptureFixture[str], *words: str) -> Any:
    """What a command prints with --json."""
    capsys.readouterr()
    assert await command("--json", "--address", "http://here", *words) == 0
    return json.loads(capsys.readouterr().out)


async def test_create_prints_a_link_that_logs_in(
    capsys: pytest.CaptureFixture[str], web: httpx.AsyncClient
) -> None:
    created = await account(capsys, "create", "ada", "--role", "staff")
    link = created.pop("login")
    assert created.pop("created")
    assert created == {
        "name": "ada",
        "role": "staff",
        "active": True,
        "has_password": False,
        "identities": [],
        "keys": 0,
        "last_login": None,
    }
    answer = await web.get(link.removeprefix("http://here"))
    assert answer.status_code == 302
    assert (await web.get("/api/me")).json()["user"]["staff"] is True
    entry = await AuditEntry.objects.aget(action="user create", target="ada")
    assert entry.who.endswith(" via command line")
    listed = (await account(capsys, "list"))["users"]
    assert next(row for row in listed if row["name"] == "ada")["last_login"]


async def test_without_an_instance_create_names_the_next_command(
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert await command("create", "early") == 0
    assert "./canopy login --user early" in capsys.readouterr().out


async def test_a_password_comes_from_standard_input(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("sys.stdin", io.StringIO("a long enough secret\n"))
    assert (await account(capsys, "create", "bo", "--password"))["has_password"] is True
    user = await User.objects.aget(username="bo")
    assert await user.acheck_password("a long enough secret")
    monkeypatch.setattr("sys.stdin", io.StringIO("short\n"))
    assert await command("password", "bo") == 1
    assert "too short" in capsys.readouterr().err
    monkeypatch.setattr("sys.stdin", io.StringIO(""))
    assert await command("password", "bo") == 1
    assert "1 to 4096 characters" in capsys.readouterr().err


@pytest.mark.parametrize("name", ["", "a b", "x" * 151])
async def test_a_bad_name_is_refused(capsys: pytest.CaptureFixture[str], name: str) -> None:
    assert await command("create", name) == 1
    assert len(capsys.readouterr().err.splitlines()) == 1


async def test_a_name_is_taken_once(capsys: pytest.CaptureFixture[str], user: User) -> None:
    assert await command("create", user.username) == 1
    assert "already" in capsys.readouterr().err
    assert await command("role", "nobody at all", "staff") == 1
    assert "does not exist" in capsys.readouterr().err


async def test_roles_change_and_the_last_administrator_stays(
    capsys: pytest.CaptureFixture[str], user: User
) -> None:
    await User.objects.filter(is_superuser=True).adelete()
    name = user.username
    assert (await account(capsys, "role", name, "administrator"))["role"] == "administrator"
    for words in (("role", name, "staff"), ("disable", name)):
        assert await command(*words) == 1
        assert "only administrator" in capsys.readouterr().err
    second = await make_user(is_staff=True, is_superuser=True)
    assert (await account(capsys, "role", name, "user"))["role"] == "user"
    await second.adelete()


async def test_disable_ends_sessions_for_good(
    capsys: pytest.CaptureFixture[str], member: httpx.AsyncClient, user: User
) -> None:
    assert (await member.get("/api/conversations")).status_code == 200
    await Login.objects.filter(user=user).adelete()  # as after a login at Django's admin
    sessions = await Session.objects.acount()
    assert (await account(capsys, "disable", user.username))["active"] is False
    assert await Session.objects.acount() == sessions - 1
    assert (await member.get("/api/conversations")).status_code == 401
    assert (await account(capsys, "enable", user.username))["active"] is True
    assert (await member.get("/api/conversations")).status_code == 401, "must log in again"


async def test_disable_ends_running_requests_keys_and_streams(
    program: httpx.AsyncClient, user: User, fake: FakeClient
) -> None:
    fake.script = beginning("and so on ")
    body = {"model": "tiny", "prompt": "x"}
    running = asyncio.create_task(program.post("/v1/completions", json=body))
    async with asyncio.timeout(30):
        await fake.submitted.wait()
        await sync_to_async(people.disable)(user)
        await until(lambda: fake.cancels, 3 * revocation.CHECK_SECONDS)
    assert fake.cancels[0] == (fake.jobs[0].request_id, user.username)
    running.cancel()
    await asyncio.gather(running, return_exceptions=True)
    async with asyncio.timeout(key_cache.CACHE_SECONDS + 0.5):
        while (await program.get("/v1/models")).status_code != 401:  # noqa: ASYNC110
            await asyncio.sleep(0.05)


def lose_role(user: User) -> None:
    people.set_role(user, "user")


def lose_password(user: User) -> None:
    people.set_password(user, "another-0ne-than-before")


@pytest.mark.parametrize("change", [lose_role, lose_password])
async def test_an_endless_stream_ends_when_its_reader_changes(
    live: str, fake: FakeClient, change: Callable[[User], None]
) -> None:
    operator = await make_user(is_staff=True)
    async with httpx.AsyncClient(base_url=live) as client:
        await log_in(client, operator)
        async with client.stream("GET", "/api/events") as events:
            assert events.status_code == 200
            lines = events.aiter_lines()
            await anext(lines)
            await sync_to_async(change)(operator)
            async with asyncio.timeout(3 * revocation.CHECK_SECONDS):
                async for _ in lines:
                    pass


async def test_an_identity_is_linked_and_unlinked(
    capsys: pytest.CaptureFixture[str], user: User, monkeypatch: pytest.MonkeyPatch
) -> None:
    name = user.username
    assert await command("link", name) == 1
    assert "--ldap ENTRY" in capsys.readouterr().err
    assert await command("link", name, "--oidc", "subject") == 1
    assert "CANOPY_OIDC_ISSUER" in capsys.readouterr().err
    assert await command("link", name, "--ldap", name) == 1
    assert "CANOPY_LDAP_URL" in capsys.readouterr().err
    wanted = identity_settings.read(
        {"CANOPY_OIDC_ISSUER": "https://id.example.org", "CANOPY_OIDC_CLIENT_ID": "canopy"}
    )
    monkeypatch.setattr(settings, "ENV", dataclasses.replace(settings.ENV, identities=wanted))
    linked = await account(capsys, "link", name, "--oidc", f"subject of {name}")
    assert linked["identities"] == ["https://id.example.org"]
    assert linked["has_password"] is False
    other = await make_user()
    assert await command("link", other.username, "--oidc", f"subject of {name}") == 1
    assert f"is '{name}' already" in capsys.readouterr().err
    assert (await account(capsys, "unlink", name))["identities"] == []
    assert await command("unlink", name) == 1
