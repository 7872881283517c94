"""Logins by an LDAP directory and at an OpenID provider, in a browser, on an instance of their own.

Pictures of the login page go into the folder that SCREENSHOTS names.
"""

import os
import re
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest
from playwright.sync_api import Browser, BrowserContext, Page, expect

from tests.directory import (
    ADMIN_GROUP,
    BASE,
    PASSWORD,
    READER,
    USERS_GROUP,
    Directory,
    private_directory,
)
from tests.e2e.browser import WAIT_MS
from tests.e2e.test_screenshots import LOOKS
from tests.instance import Instance, running
from tests.provider import CLIENT, SECRET, Provider, running_provider

pytestmark = pytest.mark.timeout(240)

LABEL = "Example University"
_SIDEWAYS = "document.scrollingElement.scrollWidth - document.scrollingElement.clientWidth"
NewContext = Callable[..., BrowserContext]


@pytest.fixture(scope="module")
def directory(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Directory]:
    with private_directory(tmp_path_factory.mktemp("directory")) as running_one:
        yield running_one


@pytest.fixture(scope="module")
def provider() -> Iterator[Provider]:
    with running_provider() as running_one:
        yield running_one


@pytest.fixture(scope="module")
def instance(
    directory: Directory, provider: Provider, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Instance]:
    folder = tmp_path_factory.mktemp("sign-on")
    (folder / "reader").write_text(PASSWORD)
    (folder / "client").write_text(SECRET)
    env = {
        "CANOPY_LDAP_URL": directory.tls_url,
        "CANOPY_LDAP_CA": str(directory.ca),
        "CANOPY_LDAP_BIND_DN": READER,
        "CANOPY_LDAP_BIND_PASSWORD_FILE": str(folder / "reader"),
        "CANOPY_LDAP_USER_BASE": f"ou=people,{BASE}",
        "CANOPY_LDAP_GROUP_BASE": f"ou=groups,{BASE}",
        "CANOPY_LDAP_USER_GROUPS": USERS_GROUP,
        "CANOPY_LDAP_ADMIN_GROUPS": ADMIN_GROUP,
        "CANOPY_OIDC_ISSUER": provider.issuer,
        "CANOPY_OIDC_CLIENT_ID": CLIENT,
        "CANOPY_OIDC_CLIENT_SECRET_FILE": str(folder / "client"),
        "CANOPY_OIDC_LABEL": LABEL,
        "CANOPY_OIDC_STAFF_GROUPS": "canopy-staff",
    }
    with running(folder / "home", "--engine", "echo", "--nodes", "1", env=env) as one:
        one.add_people(local=False)
        yield one


@pytest.fixture
def new_context(chromium: Browser, instance: Instance) -> Iterator[NewContext]:
    with ExitStack() as opened:

        def new(**options: Any) -> BrowserContext:
            context = chromium.new_context(base_url=instance.url, **options)
            context.set_default_timeout(WAIT_MS)
            return opened.enter_context(context)

        yield new


def log_in(page: Page, name: str, password: str = PASSWORD) -> None:
    page.goto("/")
    page.get_by_test_id("login-username").fill(name)
    page.get_by_test_id("login-password").fill(password)
    page.get_by_test_id("login-submit").click()


def name_of(page: Page) -> str:
    return page.request.get("/api/me").json()["user"]["name"]


def test_a_person_of_the_directory_chats(new_context: NewContext, directory: Directory) -> None:
    directory.add_person("ada", USERS_GROUP, ADMIN_GROUP)
    page = new_context().new_page()
    log_in(page, "ada", "not this one")
    expect(page.get_by_test_id("login-error")).to_have_text("Wrong username or password.")
    log_in(page, "ada")
    page.get_by_test_id("composer").fill("hello from the directory")
    page.get_by_test_id("composer").press("Enter")
    expect(page.get_by_test_id("message-assistant")).to_contain_text("hello from the directory")
    page.goto("/tree/")
    expect(page.get_by_text("n1").first).to_be_visible()
    page.goto("/settings")
    expect(page.get_by_text("kept by your organisation")).to_be_visible()


def test_who_has_left_the_directory_cannot_come_back(
    new_context: NewContext, directory: Directory
) -> None:
    dn = directory.add_person("ben", USERS_GROUP)
    page = new_context().new_page()
    log_in(page, "ben")
    expect(page.get_by_test_id("composer")).to_be_visible()
    page.get_by_test_id("logout").click()
    directory.remove(dn)
    log_in(page, "ben")
    expect(page.get_by_test_id("login-error")).to_be_visible()


def test_the_button_logs_in_and_logging_out_reaches_the_provider(
    new_context: NewContext, provider: Provider
) -> None:
    provider.person = {"sub": "1", "preferred_username": "cleo", "groups": ["canopy-staff"]}
    page = new_context().new_page()
    page.goto("/settings")
    page.get_by_test_id("sign-on").click()
    page.wait_for_url("**/settings")
    assert name_of(page) == "cleo"
    page.goto("/tree/")
    expect(page.get_by_text("n1").first).to_be_visible()
    page.goto("/")
    page.get_by_test_id("logout").click()
    expect(page.get_by_test_id("sign-on")).to_have_text(f"Log in with {LABEL}")
    assert provider.logouts


def test_a_login_that_the_provider_refuses_says_so(
    new_context: NewContext, provider: Provider
) -> None:
    provider.person = None
    page = new_context(locale="es").new_page()
    page.goto("/")
    page.get_by_test_id("sign-on").click()
    expect(page.get_by_test_id("login-error")).to_contain_text("No se pudo entrar")
    expect(page).to_have_url(re.compile(r"/$"))
    page.reload()
    expect(page.get_by_test_id("sign-on")).to_be_visible()
    expect(page.get_by_test_id("login-error")).to_have_count(0)


def test_an_account_of_this_instance_logs_in_as_ever(new_context: NewContext) -> None:
    from tests.instance import PASSWORD as LOCAL

    page = new_context().new_page()
    log_in(page, "local", LOCAL)
    expect(page.get_by_test_id("composer")).to_be_visible()


def test_no_secret_is_in_a_log(instance: Instance) -> None:
    logs = [log.read_text(errors="replace") for log in (instance.home / "logs").glob("*.log")]
    assert len(logs) > 2
    for log in logs:
        assert PASSWORD not in log
        assert SECRET not in log


@pytest.mark.parametrize("look", LOOKS)
def test_pictures_of_the_login_page(new_context: NewContext, look: str, tmp_path: Path) -> None:
    folder = Path(os.environ.get("SCREENSHOTS") or tmp_path)
    page = new_context(**LOOKS[look]).new_page()
    page.goto("/?sign_on=not_admitted")
    expect(page.get_by_test_id("sign-on")).to_be_visible()
    assert page.evaluate(_SIDEWAYS) == 0
    page.screenshot(path=folder / f"login-{look}.png")
