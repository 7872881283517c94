"""People whose passwords a real LDAP directory checks."""

import asyncio
import dataclasses
import socket
import time
from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any

import httpx
import pytest
from asgiref.sync import sync_to_async
from django.conf import settings

from api.accounts import people
from api.accounts.models import Identity, User
from api.identities import settings as identity_settings
from api.identities.settings import IdentitySettings
from tests.directory import (
    ADMIN_GROUP,
    BASE,
    PASSWORD,
    READER,
    STAFF_GROUP,
    USERS_GROUP,
    Directory,
    private_directory,
)
from tests.unit.api_site import FakeClient, browser, make_user, refresh_csrf

WRONG = 400


@pytest.fixture(scope="module")
def directory(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Directory]:
    with private_directory(tmp_path_factory.mktemp("directory")) as running:
        yield running


def environment(directory: Directory, **changes: str) -> dict[str, str]:
    """Over TLS with an account that may search, as an operator sets it."""
    secret = directory.ca.parent / "reader-password"
    secret.write_text(f"{PASSWORD}\n")
    return {
        "CANOPY_LDAP_URL": directory.tls_url,
        "CANOPY_LDAP_CA": str(directory.ca),
        "CANOPY_LDAP_BIND_DN": READER,
        "CANOPY_LDAP_BIND_PASSWORD_FILE": str(secret),
        "CANOPY_LDAP_USER_BASE": f"ou=people,{BASE}",
        "CANOPY_LDAP_GROUP_BASE": f"ou=groups,{BASE}",
        "CANOPY_LDAP_USER_GROUPS": USERS_GROUP,
        "CANOPY_LDAP_STAFF_GROUPS": STAFF_GROUP,
        "CANOPY_LDAP_ADMIN_GROUPS": f"{ADMIN_GROUP.upper()} ; cn=others,{BASE}",
        **changes,
    }


def use(monkeypatch: pytest.MonkeyPatch, wanted: IdentitySettings) -> None:
    """Has the running application use these settings."""
    monkeypatch.setattr(settings, "ENV", dataclasses.replace(settings.ENV, identities=wanted))
    monkeypatch.setattr(
        settings,
        "AUTHENTICATION_BACKENDS",
        [*settings.AUTHENTICATION_BACKENDS, "api.identities.ldap_backend.DirectoryBackend"],
    )


@pytest.fixture
def configured(
    fake: FakeClient, directory: Directory, monkeypatch: pytest.MonkeyPatch
) -> Directory:
    use(monkeypatch, identity_settings.read(environment(directory)))
    return directory


async def log_in(name: str, password: str = PASSWORD) -> httpx.Response:
    async with browser() as client:
        return await post_login(client, name, password)


async def post_login(client: httpx.AsyncClient, name: str, password: str) -> httpx.Response:
    await client.get("/api/me")
    await refresh_csrf(client)
    return await client.post("/api/login", json={"username": name, "password": password})


async def test_the_first_login_makes_an_account_without_a_password(configured: Directory) -> None:
    configured.add_person("abel", USERS_GROUP, mail="abel@example.org")
    answer = await log_in("abel")
    assert answer.status_code == 200, answer.text
    assert answer.json()["user"] == {
        "name": "abel",
        "staff": False,
        "has_password": False,
        "known_elsewhere": True,
        "confirmation": "password",
    }
    user = await User.objects.aget(username="abel")
    assert (user.email, user.first_name, user.last_name) == ("", "", "")  # nothing else is kept
    assert (await log_in("ABEL")).json()["user"]["name"] == "abel"
    assert await User.objects.filter(username__iexact="abel").acount() == 1


async def test_a_wrong_password_is_refused_and_counted(configured: Directory) -> None:
    configured.add_person("ben", USERS_GROUP)
    names = ["ben", "Ben", "BEN", "bEN", "beN"]
    statuses = [(await log_in(name, "wrong")).status_code for name in names]
    assert statuses == [WRONG] * 4 + [429]
    assert (await log_in("ben")).status_code == 429  # the right one, too, for a while


@pytest.mark.parametrize("name", ["", "*", "b*", "cleo)(uid=*", "cleo ", "ada,ou=people", "çleo"])
async def test_a_name_is_no_pattern(configured: Directory, name: str) -> None:
    assert (await log_in(name)).status_code in (400, 429)


async def test_an_empty_password_is_no_anonymous_login(configured: Directory) -> None:
    configured.add_person("dan", USERS_GROUP)
    assert (await log_in("dan", "")).status_code == WRONG


async def test_who_is_in_none_of_the_groups_may_not_log_in(configured: Directory) -> None:
    configured.add_person("eve")
    assert (await log_in("eve")).status_code == WRONG
    assert not await User.objects.filter(username="eve").aexists()


@pytest.mark.parametrize(
    ("name", "group", "role"),
    [
        ("flo", USERS_GROUP, "user"),
        ("gus", STAFF_GROUP, "staff"),
        ("hal", ADMIN_GROUP, "administrator"),
    ],
)
async def test_groups_give_roles(configured: Directory, name: str, group: str, role: str) -> None:
    configured.add_person(name, group)
    assert (await log_in(name)).status_code == 200
    assert people.role_of(await User.objects.aget(username=name)) == role


async def test_a_lost_group_takes_the_role_at_the_next_login(configured: Directory) -> None:
    from api.operate.audit.models import AuditEntry

    dn = configured.add_person("ida", USERS_GROUP, STAFF_GROUP)
    assert (await log_in("ida")).json()["user"]["staff"] is True
    configured.leave(STAFF_GROUP, dn)
    assert (await log_in("ida")).json()["user"]["staff"] is False
    entry = await AuditEntry.objects.filter(target="ida", action="set role").afirst()
    assert entry is not None
    assert entry.detail == "user, by ldap"
    configured.leave(USERS_GROUP, dn)
    assert (await log_in("ida")).status_code == WRONG


async def test_a_removed_entry_ends_logins(configured: Directory) -> None:
    dn = configured.add_person("jon", USERS_GROUP)
    assert (await log_in("jon")).status_code == 200
    configured.remove(dn)
    assert (await log_in("jon")).status_code == WRONG


async def test_who_is_disabled_here_stays_out(configured: Directory) -> None:
    configured.add_person("kim", USERS_GROUP)
    async with browser() as client:
        assert (await post_login(client, "kim", PASSWORD)).status_code == 200
        await User.objects.filter(username="kim").aupdate(is_active=False)
        assert (await client.get("/api/me")).json()["user"] is None
    assert (await log_in("kim")).status_code == WRONG


async def test_an_account_of_that_name_is_never_taken_over(configured: Directory) -> None:
    user = await make_user()
    configured.add_person(user.username, USERS_GROUP, ADMIN_GROUP)
    assert (await log_in(user.username)).status_code == WRONG
    assert (await log_in(user.username.upper())).status_code == WRONG
    assert (await log_in(user.username, "secret password")).status_code == 200
    assert not await Identity.objects.filter(user=user).aexists()


async def test_a_renamed_person_keeps_the_account_and_the_old_name_gets_another(
    configured: Directory,
) -> None:
    dn = configured.add_person("lea", USERS_GROUP)
    assert (await log_in("lea")).status_code == 200
    configured.leave(USERS_GROUP, dn)
    configured.rename(dn, "lea.new")
    configured.join(USERS_GROUP, f"uid=lea.new,ou=people,{BASE}")
    assert (await log_in("lea.new")).json()["user"]["name"] == "lea"
    configured.add_person("lea", USERS_GROUP)
    assert (await log_in("lea")).json()["user"]["name"] == "lea-2"


async def test_an_administrator_links_an_account(configured: Directory) -> None:
    from api.identities import linking
    from api.identities.ldap_backend import DirectoryBackend

    user = await make_user(is_staff=True)
    user.username = "mia"
    await user.asave()
    configured.add_person("mia", USERS_GROUP)
    subject = await sync_to_async(DirectoryBackend().subject_named)("mia")
    assert subject is not None
    await sync_to_async(linking.link)(user, linking.LDAP, subject)
    assert (await log_in("mia", "secret password")).status_code == WRONG
    assert (await log_in("mia")).json()["user"]["name"] == "mia"
    await sync_to_async(user.set_password)("set at /admin/, where nobody checks")
    await user.asave(update_fields=["password"])
    assert (await log_in("mia", "set at /admin/, where nobody checks")).status_code == WRONG
    with pytest.raises(people.AccountError, match="checked elsewhere"):
        await sync_to_async(people.set_password)(user, "another password of theirs")
    await sync_to_async(linking.unlink)(user)
    assert (await log_in("mia")).status_code == WRONG


async def test_no_password_can_be_chosen_here(configured: Directory) -> None:
    configured.add_person("ned", USERS_GROUP)
    async with browser() as client:
        await post_login(client, "ned", PASSWORD)
        await refresh_csrf(client)
        body = {"name": "ned", "password": "a way in after the directory has said no"}
        answer = await client.post("/api/account/start", json=body)
    assert answer.status_code == 409
    assert answer.json()["error"]["code"] == "password_elsewhere"


async def test_the_session_ends_after_some_hours(configured: Directory) -> None:
    configured.add_person("oda", USERS_GROUP)
    answer = await log_in("oda")
    cookies = [each for each in answer.headers.get_list("set-cookie") if "session" in each]
    assert "Max-Age=43200" in cookies[0]


async def test_the_admin_pages_take_the_directorys_password(configured: Directory) -> None:
    configured.add_person("pia", ADMIN_GROUP)
    async with browser() as client:
        await client.get("/admin/login/")
        fields = {"username": "pia", "password": PASSWORD, "next": "/admin/"}
        fields["csrfmiddlewaretoken"] = client.cookies["csrftoken"]
        answer = await client.post("/admin/login/", data=fields)
        assert answer.status_code == 302, answer.text
        assert (await client.get("/admin/")).status_code == 200


def test_long_identifiers_that_begin_alike_are_different(
    directory: Directory, monkeypatch: pytest.MonkeyPatch
) -> None:
    from api.identities.ldap_backend import subject_of

    use(monkeypatch, identity_settings.read(environment(directory)))

    def subject(dn: str) -> str:
        return subject_of(SimpleNamespace(attrs={}, dn=dn))

    base = ",".join(["ou=x" * 20] * 8)
    first, second = subject(f"uid=ada,{base},dc=a"), subject(f"uid=ada,{base},dc=b")
    assert first != second
    assert max(len(first), len(second)) <= 255
    assert subject("UID=Ada, DC=a") == subject("uid=ada,dc=a")


# ---- a directory that does not answer, or not as it should


async def timed(name: str, password: str = PASSWORD) -> tuple[int, float]:
    began = time.monotonic()
    answer = await log_in(name, password)
    return answer.status_code, time.monotonic() - began


async def test_a_directory_that_is_down_is_no_wrong_password(
    fake: FakeClient, directory: Directory, monkeypatch: pytest.MonkeyPatch
) -> None:
    use(
        monkeypatch,
        identity_settings.read(environment(directory, CANOPY_LDAP_URL="ldap://127.0.0.1:9")),
    )
    user = await make_user()
    for _ in range(6):  # more than wrong passwords may be
        answer = await log_in("quin")
        assert answer.status_code == 503
        assert answer.json()["error"]["code"] == "unavailable"
    assert (await log_in(user.username, "secret password")).status_code == 200
    statuses = [(await log_in(user.username, "wrong")).status_code for _ in range(5)]
    assert statuses == [WRONG] * 4 + [429]  # guesses at an account of ours still count


async def test_a_silent_directory_holds_a_login_for_seconds_and_nobody_else(
    fake: FakeClient, directory: Directory, monkeypatch: pytest.MonkeyPatch
) -> None:
    from api.identities import ldap_backend

    monkeypatch.setattr(ldap_backend, "TIMEOUT", 1)
    user = await make_user()
    with socket.create_server(("127.0.0.1", 0)) as silent:
        port = silent.getsockname()[1]
        for url in (f"ldap://127.0.0.1:{port}", f"ldaps://localhost:{port}"):
            use(monkeypatch, identity_settings.read(environment(directory, CANOPY_LDAP_URL=url)))
            waiting = asyncio.create_task(timed("rob"))
            await asyncio.sleep(0.2)
            status, seconds = await timed(user.username, "secret password")
            assert status == 200
            status, seconds = await waiting
            assert status == 503
            assert seconds < 10


@pytest.mark.parametrize(
    "change",
    [
        {"CANOPY_LDAP_CA": "/etc/ssl/certs/ca-certificates.crt"},
        {"CANOPY_LDAP_BIND_DN": f"cn=nobody,{BASE}"},
        {"CANOPY_LDAP_USER_BASE": "dc=elsewhere"},
    ],
)
async def test_a_wrong_setting_is_no_wrong_password(
    fake: FakeClient, directory: Directory, monkeypatch: pytest.MonkeyPatch, change: dict[str, str]
) -> None:
    use(monkeypatch, identity_settings.read(environment(directory, **change)))
    assert (await log_in("somebody")).status_code == 503


async def test_starttls(
    fake: FakeClient, directory: Directory, monkeypatch: pytest.MonkeyPatch
) -> None:
    changes = {"CANOPY_LDAP_URL": directory.url, "CANOPY_LDAP_START_TLS": "yes"}
    use(monkeypatch, identity_settings.read(environment(directory, **changes)))
    directory.add_person("sue", USERS_GROUP)
    assert (await log_in("sue")).status_code == 200
    assert "STARTTLS" in directory.log.read_text()


@pytest.mark.parametrize("kind", ["uniqueMember", "memberUid", "nested"])
async def test_other_kinds_of_groups(
    fake: FakeClient, directory: Directory, monkeypatch: pytest.MonkeyPatch, kind: str
) -> None:
    name = f"una-{kind.lower()}"
    dn = directory.add_person(name)
    match kind:
        case "uniqueMember":
            group = directory.add_group(kind, "groupOfUniqueNames", uniqueMember=dn)
        case "memberUid":
            group = directory.add_group(kind, "posixGroup", gidNumber="7", memberUid=name)
        case _:
            inner = directory.add_group("inner", "groupOfNames", member=dn)
            group = directory.add_group(kind, "groupOfNames", member=inner)
    changes = {"CANOPY_LDAP_MEMBER": kind, "CANOPY_LDAP_STAFF_GROUPS": group}
    use(monkeypatch, identity_settings.read(environment(directory, **changes)))
    answer = await log_in(name)
    assert answer.status_code == 200, answer.text
    assert answer.json()["user"]["staff"] is True


async def test_no_password_is_logged(
    configured: Directory, caplog: pytest.LogCaptureFixture, capfd: pytest.CaptureFixture[str]
) -> None:
    caplog.set_level("DEBUG")
    configured.add_person("tom", USERS_GROUP)
    await log_in("tom")
    await log_in("tom", "a secret that is wrong")
    said = caplog.text + "".join(capfd.readouterr())
    assert PASSWORD not in said
    assert "a secret that is wrong" not in said


# ---- settings


def wrong(**changes: Any) -> str:
    good = {
        "CANOPY_LDAP_URL": "ldaps://ldap.example.org",
        "CANOPY_LDAP_USER_BASE": f"ou=people,{BASE}",
    }
    with pytest.raises(ValueError, match="CANOPY_") as caught:
        identity_settings.read({**good, **changes})
    return str(caught.value)


def test_settings_that_cannot_be_used_are_named() -> None:
    assert "unencrypted" in wrong(CANOPY_LDAP_URL="ldap://ldap.example.org")
    assert "CANOPY_LDAP_URL" in wrong(CANOPY_LDAP_URL="ldap.example.org")
    assert "CANOPY_LDAP_START_TLS" in wrong(CANOPY_LDAP_START_TLS="yes")
    assert "CANOPY_LDAP_CA" in wrong(CANOPY_LDAP_CA="/nowhere")
    assert "CANOPY_LDAP_USER_BASE" in wrong(CANOPY_LDAP_USER_BASE="")
    assert "CANOPY_LDAP_USER_FILTER" in wrong(CANOPY_LDAP_USER_FILTER="(uid=%s)")
    assert "CANOPY_LDAP_MEMBER" in wrong(CANOPY_LDAP_MEMBER="friend")
    assert "CANOPY_LDAP_GROUP_BASE" in wrong(CANOPY_LDAP_STAFF_GROUPS="cn=staff")
    assert "CANOPY_LDAP_BIND_PASSWORD_FILE" in wrong(CANOPY_LDAP_BIND_PASSWORD_FILE="/nowhere")
    assert "CANOPY_IDENTITY_HOURS" in wrong(CANOPY_IDENTITY_HOURS="0")


def test_no_secret_is_in_the_settings_text(directory: Directory) -> None:
    assert PASSWORD not in repr(identity_settings.read(environment(directory)))
