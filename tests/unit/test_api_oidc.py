"""Logins at an OpenID provider, from the button to the session."""

import dataclasses
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, urlsplit

import httpx
import pytest
from asgiref.sync import sync_to_async
from django.conf import settings
from django.contrib.sessions.models import Session
from joserfc import jwt
from joserfc.jwk import OctKey, RSAKey

from api.accounts import people
from api.accounts.models import Identity, User
from api.context import app
from api.identities import linking
from api.identities import settings as identity_settings
from api.identities.oidc import OidcProvider, groups_of
from tests.provider import CLIENT, SECRET, Claims, Provider, running_provider
from tests.unit.api_site import FakeClient, browser, make_user, refresh_csrf

ADA = {"sub": "subject-1", "preferred_username": "ada.l", "groups": ["canopy"]}


@pytest.fixture
def provider() -> Iterator[Provider]:
    with running_provider() as running:
        yield running


def environment(provider: Provider, folder: Path, **changes: str) -> dict[str, str]:
    secret = folder / "client-secret"
    secret.write_text(f"{SECRET}\n")
    return {
        "CANOPY_OIDC_ISSUER": provider.issuer,
        "CANOPY_OIDC_CLIENT_ID": CLIENT,
        "CANOPY_OIDC_CLIENT_SECRET_FILE": str(secret),
        "CANOPY_OIDC_LABEL": "Example University",
        "CANOPY_OIDC_USER_GROUPS": "canopy",
        "CANOPY_OIDC_STAFF_GROUPS": "canopy-staff; operators of the room",
        "CANOPY_OIDC_ADMIN_GROUPS": "canopy-admins",
        **changes,
    }


def use(monkeypatch: pytest.MonkeyPatch, environ: dict[str, str]) -> None:
    """Has the running application use these settings."""
    wanted = identity_settings.read(environ)
    monkeypatch.setattr(settings, "ENV", dataclasses.replace(settings.ENV, identities=wanted))
    assert wanted.oidc is not None
    # The application was built without; this one ends with the test.
    object.__setattr__(app(), "oidc", OidcProvider(wanted.oidc))


@pytest.fixture
def configured(
    fake: FakeClient, provider: Provider, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> Provider:
    use(monkeypatch, environment(provider, tmp_path))
    provider.person = {**ADA, "sub": f"subject-{time.monotonic_ns()}"}
    return provider


async def to_provider(client: httpx.AsyncClient, start: str = "/oidc/login") -> str:
    """The address that the provider sends the browser back to."""
    answer = await client.get(start)
    assert answer.status_code == 302, answer.text
    async with httpx.AsyncClient() as outside:
        there = await outside.get(answer.headers["location"])
    assert there.status_code == 302, there.text
    parts = urlsplit(there.headers["location"])
    return f"{parts.path}?{parts.query}"


async def log_in(client: httpx.AsyncClient, start: str = "/oidc/login") -> httpx.Response:
    """From the button to the page after it."""
    return await client.get(await to_provider(client, start))


async def me(client: httpx.AsyncClient) -> Any:
    return (await client.get("/api/me")).json()


async def test_a_login_makes_an_account_and_a_session(configured: Provider) -> None:
    async with browser() as client:
        shown = await me(client)
        assert shown["sign_on"] == {"label": "Example University", "address": "/oidc/login"}
        answer = await log_in(client)
        assert (answer.status_code, answer.headers["location"]) == (302, "/")
        shown = await me(client)
        assert shown["user"]["name"].startswith("ada.l")
        assert shown["user"]["known_elsewhere"] is True
        assert shown["after_logout"] == "/oidc/logout"
        assert "sign_on" in shown
        assert "canopy_session_oidc" not in client.cookies
        name = shown["user"]["name"]
    assert configured.person is not None
    identity = await Identity.objects.select_related("user").aget(
        provider=configured.issuer, subject=configured.person["sub"]
    )
    assert identity.user.username == name
    async with browser() as client:  # once more: the same account
        await log_in(client)
        assert (await me(client))["user"]["name"] == name


async def test_the_browser_comes_back_to_where_it_was(configured: Provider) -> None:
    for wanted, reached in {
        "/c/12?x=1": "/c/12?x=1",
        "//evil.example/": "/",
        "https://evil.example/": "/",
        "/\\evil.example": "/",
        "javascript:alert(1)": "/",
        "c/12": "/",
    }.items():
        async with browser() as client:
            address = str(httpx.URL("/oidc/login", params={"next": wanted}))
            assert (await log_in(client, address)).headers["location"] == reached


async def test_nobody_is_logged_in_without_the_cookie_of_the_attempt(configured: Provider) -> None:
    async with browser() as client, browser() as victim:
        address = await to_provider(client)
        assert failure(await victim.get(address)) == "failed"  # somebody else's link
        assert (await me(victim))["user"] is None
        assert failure(await client.get(address.replace("state=", "state=x"))) == "failed"
        assert failure(await client.get("/oidc/callback?code=x&state=y")) == "failed"
        assert failure(await client.get("/oidc/callback")) == "failed"


async def test_an_answer_counts_once(configured: Provider) -> None:
    async with browser() as client:
        address = await to_provider(client)
        cookies = dict(client.cookies)
        assert (await client.get(address)).headers["location"] == "/"
    async with browser() as client:
        client.cookies.update(cookies)
        assert failure(await client.get(address)) == "failed"


async def test_a_changed_cookie_is_none(configured: Provider) -> None:
    async with browser() as client:
        address = await to_provider(client)
        value = client.cookies["canopy_session_oidc"]
        client.cookies.set(
            "canopy_session_oidc", "x" + value[1:], domain="127.0.0.1", path="/oidc/"
        )
        assert failure(await client.get(address)) in ("failed",)


async def test_visitors_who_never_log_in_leave_no_rows(configured: Provider) -> None:
    before = await Session.objects.acount()
    for _ in range(3):
        async with browser() as client:
            await client.get("/oidc/login")
    assert await Session.objects.acount() == before


def failure(answer: httpx.Response) -> str:
    """What the login page will say."""
    assert answer.status_code == 302, answer.text
    parts = urlsplit(answer.headers["location"])
    assert parts.path == "/"
    return parse_qs(parts.query).get("sign_on", [""])[0]


async def refused(provider: Provider) -> str:
    async with browser() as client:
        reason = failure(await log_in(client))
        assert (await me(client))["user"] is None
    return reason


def other_key(claims: Claims) -> str:
    return jwt.encode({"alg": "RS256", "kid": "first"}, claims, RSAKey.generate_key(2048))


def unsigned(claims: Claims) -> str:
    header, payload, _ = other_key(claims).split(".")
    import base64

    head = base64.urlsafe_b64encode(b'{"alg":"none","kid":"first"}').rstrip(b"=").decode()
    del header
    return f"{head}.{payload}."


def by_secret(claims: Claims) -> str:
    key = OctKey.import_key(SECRET + "x" * 40)
    return jwt.encode({"alg": "HS256", "kid": "first"}, claims, key)


@pytest.mark.parametrize("sign", [other_key, unsigned, by_secret])
async def test_a_forged_token_is_refused(
    configured: Provider, sign: Callable[[Claims], str]
) -> None:
    configured.sign = sign
    assert await refused(configured) == "failed"


@pytest.mark.parametrize(
    "change",
    [
        {"aud": "another client"},
        {"aud": ["canopy", "another"], "azp": "another"},
        {"iss": "https://evil.example"},
        {"nonce": "another"},
        {"nonce": None},
        {"exp": 1},
        {"iat": None},
        {"sub": ""},
        {"sub": None},
        {"sub": 5},
        {"sub": "x" * 300},
    ],
)
async def test_a_token_that_is_not_for_this_login_is_refused(
    configured: Provider, change: Claims
) -> None:
    def changed(claims: Claims) -> Claims:
        merged = {**claims, **change}
        return {name: value for name, value in merged.items() if value is not None}

    configured.change = changed
    assert await refused(configured) == "failed"


async def test_who_refuses_there_is_not_logged_in(configured: Provider) -> None:
    configured.person = None
    assert await refused(configured) == "failed"


async def test_new_keys_of_the_provider_are_fetched(configured: Provider) -> None:
    async with browser() as client:
        await log_in(client)
    configured.renew_key()
    async with browser() as client:
        assert (await log_in(client)).headers["location"] == "/"


# ---- roles


@pytest.mark.parametrize(
    ("groups", "role"),
    [
        (["canopy"], "user"),
        (["operators of the room"], "staff"),
        (["canopy-admins", "canopy-staff"], "administrator"),
    ],
)
async def test_groups_give_roles(configured: Provider, groups: list[str], role: str) -> None:
    assert configured.person is not None
    configured.person["groups"] = groups
    async with browser() as client:
        await log_in(client)
        name = (await me(client))["user"]["name"]
    assert people.role_of(await User.objects.aget(username=name)) == role


async def test_a_lost_group_takes_the_role_and_then_the_way_in(configured: Provider) -> None:
    assert configured.person is not None
    configured.person["groups"] = ["canopy-admins"]
    async with browser() as client:
        await log_in(client)
        assert (await me(client))["user"]["staff"] is True
        configured.person["groups"] = ["canopy"]
        async with browser() as another:
            await log_in(another)
        assert (await me(client))["user"]["staff"] is False  # in the older session, too
    configured.person["groups"] = []
    assert await refused(configured) == "not_admitted"


async def test_who_is_disabled_here_stays_out(configured: Provider) -> None:
    async with browser() as client:
        await log_in(client)
        name = (await me(client))["user"]["name"]
    await User.objects.filter(username=name).aupdate(is_active=False)
    assert await refused(configured) == "not_admitted"


async def test_groups_may_be_at_the_userinfo_endpoint(configured: Provider) -> None:
    assert configured.person is not None
    groups = configured.person.pop("groups")
    assert await refused(configured) == "not_admitted"
    configured.further = {"groups": groups}
    async with browser() as client:
        assert (await log_in(client)).headers["location"] == "/"
    configured.further = {"groups": groups, "sub": "somebody else"}
    assert await refused(configured) == "failed"


def test_groups_inside_other_claims() -> None:
    claims = {"realm_access": {"roles": ["a", 5, "b"]}, "https://example.org/groups": "c"}
    assert groups_of(claims, "realm_access.roles") == {"a", "b"}
    assert groups_of(claims, "https://example.org/groups") == {"c"}
    assert groups_of(claims, "realm_access.other") == set()
    assert groups_of(claims, "https") == set()


# ---- accounts


async def test_no_account_is_taken_over_by_name_or_address(configured: Provider) -> None:
    user = await make_user(email="owner@example.org", is_staff=True)
    assert configured.person is not None
    configured.person |= {
        "preferred_username": user.username,
        "email": "owner@example.org",
        "email_verified": True,
    }
    async with browser() as client:
        await log_in(client)
        assert (await me(client))["user"]["name"] == f"{user.username}-2"
    assert not await Identity.objects.filter(user=user).aexists()


async def test_an_administrator_links_an_account(configured: Provider) -> None:
    user = await make_user()
    assert configured.person is not None
    await sync_to_async(linking.link)(user, configured.issuer, configured.person["sub"])
    async with browser() as client:
        await log_in(client)
        assert (await me(client))["user"]["name"] == user.username


@pytest.mark.parametrize("name", ["", "<script>", "a b/c", "x" * 400, 7, None])
async def test_any_name_makes_an_account(configured: Provider, name: Any) -> None:
    assert configured.person is not None
    configured.person["preferred_username"] = name
    async with browser() as client:
        assert (await log_in(client)).headers["location"] == "/"
        shown = (await me(client))["user"]["name"]
    user = await User.objects.aget(username=shown)
    await sync_to_async(user.full_clean)(exclude=["password"])


async def test_logging_out_ends_the_providers_session_too(configured: Provider) -> None:
    async with browser() as client:
        await log_in(client)
        await me(client)
        await refresh_csrf(client)
        assert (await client.post("/api/logout")).status_code == 204
        answer = await client.get("/oidc/logout")
        parts = urlsplit(answer.headers["location"])
        assert f"{parts.scheme}://{parts.netloc}{parts.path}" == f"{configured.issuer}/logout"
        fields = parse_qs(parts.query)
        assert fields["post_logout_redirect_uri"] == ["http://127.0.0.1/"]
        assert fields["client_id"] == [CLIENT]


async def test_the_session_ends_after_some_hours(configured: Provider) -> None:
    async with browser() as client:
        answer = await log_in(client)
    cookies = [each for each in answer.headers.get_list("set-cookie") if "session=" in each]
    assert "Max-Age=43200" in cookies[0]


# ---- a provider that does not answer, or not as it should


async def begin_fails(client: httpx.AsyncClient) -> str:
    return failure(await client.get("/oidc/login"))


async def test_a_provider_that_is_down_says_so(
    fake: FakeClient, provider: Provider, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    use(
        monkeypatch,
        environment(provider, tmp_path, CANOPY_OIDC_ISSUER="http://127.0.0.1:9"),
    )
    async with browser() as client:
        assert await begin_fails(client) == "unavailable"
        answer = await client.get("/oidc/logout")
        assert answer.headers["location"] == "http://127.0.0.1/"


@pytest.mark.parametrize(
    "metadata",
    [{"issuer": "https://evil.example"}, {"authorization_endpoint": None}],
)
async def test_a_provider_that_says_it_is_another_is_not_used(
    configured: Provider, metadata: Claims
) -> None:
    configured.metadata = metadata
    async with browser() as client:
        assert await begin_fails(client) == "unavailable"
    configured.metadata = {}
    async with browser() as client:  # once it is mended
        assert (await log_in(client)).headers["location"] == "/"


@pytest.mark.parametrize("answer", [[], ["x"], "x", 1, None])
async def test_answers_that_are_no_objects_are_a_broken_providers(
    configured: Provider, monkeypatch: pytest.MonkeyPatch, answer: Any
) -> None:
    """Its page says so: it is no error of ours."""
    monkeypatch.setattr(configured, "token", lambda *_: (200, answer))
    async with browser() as client:
        assert failure(await log_in(client)) in ("unavailable", "failed")
    monkeypatch.setattr(configured, "discovery", lambda: answer)
    async with browser() as client:
        assert await begin_fails(client) == "unavailable"
        left = await client.get("/oidc/logout")
        assert left.headers["location"] == "http://127.0.0.1/"


async def test_who_logs_out_at_a_broken_provider_is_sent_home(configured: Provider) -> None:
    configured.metadata = {"end_session_endpoint": 7}
    async with browser() as client:
        await log_in(client)
        answer = await client.get("/oidc/logout")
        assert answer.headers["location"] == "http://127.0.0.1/"


async def test_a_client_without_a_secret(
    fake: FakeClient, provider: Provider, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    use(monkeypatch, environment(provider, tmp_path, CANOPY_OIDC_CLIENT_SECRET_FILE=""))
    provider.public = True
    provider.person = dict(ADA)
    async with browser() as client:
        assert (await log_in(client)).headers["location"] == "/"


async def test_without_a_provider_there_is_nothing(web: httpx.AsyncClient) -> None:
    for path in ("/oidc/login", "/oidc/callback", "/oidc/logout"):
        assert (await web.get(path)).status_code == 404
    assert (await me(web))["sign_on"] is None


def test_settings_that_cannot_be_used_are_named() -> None:
    good = {"CANOPY_OIDC_ISSUER": "https://id.example.org", "CANOPY_OIDC_CLIENT_ID": "canopy"}
    for name, value in {
        "CANOPY_OIDC_ISSUER": "http://id.example.org",
        "CANOPY_OIDC_CLIENT_ID": "",
        "CANOPY_OIDC_CLIENT_SECRET_FILE": "/nowhere",
        "CANOPY_OIDC_SCOPES": "profile",
        "CANOPY_OIDC_LABEL": "x" * 100,
    }.items():
        with pytest.raises(ValueError, match=name):
            identity_settings.read({**good, name: value})
    assert identity_settings.read(good).oidc is not None


async def test_who_comes_by_single_sign_on_ends_the_account_by_its_name(
    configured: Provider,
) -> None:
    async with browser() as client:
        await log_in(client)
        user = (await me(client))["user"]
        assert user["confirmation"] == "name"
        await refresh_csrf(client)
        for body in ({}, {"password": "anything"}, {"name": "somebody"}):
            answer = await client.post("/api/account/delete", json=body)
            assert answer.status_code == 400
            assert answer.json()["error"]["code"] == "wrong_name"
        answer = await client.post("/api/account/delete", json={"name": user["name"]})
        assert answer.status_code == 204
        assert (await me(client))["user"] is None
    assert not await User.objects.filter(username=user["name"]).aexists()
