"""The logs on the dashboard: live, filtered, and without a secret in them."""

import re
import time
import uuid

import httpx
import pytest
from playwright.sync_api import Page, expect

from tests.e2e.conftest import OpenPage
from tests.e2e.dead_letters import bury
from tests.e2e.test_accessible import violations, with_axe
from tests.instance import PASSWORD, Instance

pytestmark = pytest.mark.timeout(170)


def open_logs(open_page: OpenPage) -> Page:
    page = with_axe(open_page("operator"))
    page.goto("/tree/logs")
    expect(page.get_by_test_id("logs-state")).to_have_attribute("data-state", "live")
    return page


def test_lines_of_all_processes_are_followed_and_filtered(
    echo: Instance, staff: httpx.Client, open_page: OpenPage
) -> None:
    page = open_logs(open_page)
    lines = page.get_by_test_id("log-line")
    expect(page.locator("[data-testid=log-line][data-process=n1]").first).to_be_visible()
    page.get_by_test_id("logs-process").select_option("api")
    expect(page.locator("[data-testid=log-line][data-process=n1]")).to_have_count(0)
    (echo.home / "logs" / "api.log").read_text()

    secret_model = f"no-such-model-{uuid.uuid4().hex[:6]}"
    request_id = uuid.uuid4().hex
    with (echo.home / "logs" / "api.log").open("a") as log:
        moment = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())
        log.write(
            f"timestamp='{moment}' level='error' event='broken' request_id='{request_id}' "
            f"model='{secret_model}'\n"
        )
    shown = lines.filter(has_text=request_id)
    expect(shown).to_have_attribute("data-level", "error")
    shown.get_by_role("button", name="only this request").click()
    expect(page.get_by_test_id("logs-request")).to_have_value(request_id)
    expect(lines).to_have_count(1)
    page.get_by_test_id("logs-request").fill("")
    page.get_by_test_id("logs-level").select_option("error")
    expect(lines.filter(has_text=request_id)).to_be_visible()
    expect(page.locator("[data-testid=log-line][data-level=info]")).to_have_count(0)
    assert request_id in echo.canopy("logs", "api", "--request", request_id, "--json")


def test_nothing_secret_is_logged(echo: Instance, program: httpx.Client) -> None:
    """What people typed, and what lets them in, as each process saw it."""
    secret = f"prompt-{uuid.uuid4().hex}"
    key, token = echo.key(), echo.login_token()
    body = {"model": "echo", "messages": [{"role": "user", "content": secret}], "max_tokens": 1}
    assert program.post("/v1/chat/completions", json=body).status_code == 200
    assert program.post("/v1/chat/completions", json={**body, "model": "nope"}).status_code == 404
    assert program.post("/v1/chat/completions", content=f'{{"x": "{secret}').status_code == 400
    bury(echo, f'{{"prompt": "{secret}"'.encode())
    with echo.session(token) as client:
        cookies = [cookie.value for cookie in client.cookies.jar if cookie.value]
        client.post("/api/login", json={"username": "operator", "password": f"{secret}x"})
    with httpx.Client(base_url=echo.url) as stranger:
        stranger.get("/login", params={"token": secret})
        stranger.get("/v1/models", headers={"Authorization": f"Bearer canopy_{secret}"})
    echo.canopy("dead", "drop", "--all")
    passwords = re.findall(r"amqp://[^:]+:([^@]+)@", str(echo.record()["amqp"]))
    assert len(passwords) == 3
    secrets = [secret, key, token, echo.token, PASSWORD, *cookies, *passwords]
    for path in (echo.home / "logs").iterdir():
        text = path.read_text(errors="replace")
        assert [each for each in secrets if each in text] == [], path.name


def test_axe_finds_nothing(open_page: OpenPage) -> None:
    page = open_logs(open_page)
    expect(page.get_by_test_id("log-line").first).to_be_visible()
    page.get_by_test_id("logs-pause").click()
    assert violations(page) == []


def test_logs_are_for_staff(open_page: OpenPage) -> None:
    page = open_page("reader")
    for path in ("/api/operate/logs", "/api/operate/history", "/api/operate/dead"):
        assert page.request.get(path).status == 403
