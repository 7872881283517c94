"""The first login by link, and the settings page: what is set there is so everywhere."""

import re

import httpx
import pytest
from playwright.sync_api import Page, expect

from tests.e2e.browser import Chat, ends
from tests.e2e.conftest import OpenPage
from tests.e2e.test_accessible import violations, with_axe
from tests.instance import PASSWORD, Instance

pytestmark = pytest.mark.timeout(180)

GOOD = "a long enough sentence"
_NEW_ACCOUNT = """
import sys
import django
django.setup()
from api.accounts import tokens
from api.accounts.models import User
user, _ = User.objects.get_or_create(username=sys.argv[1])
user.set_unusable_password()
user.save()
print(tokens.create(user))
"""
_ACCOUNT = """
import sys
import django
django.setup()
from api.accounts.models import User
User.objects.create_user(sys.argv[1], password=sys.argv[2])
"""


def settings_of(page: Page) -> Page:
    """Goes to the settings as a person does: by the avatar."""
    page.get_by_test_id("settings-link").click()
    page.wait_for_url("**/settings")
    page.get_by_test_id("theme").wait_for()
    return page


def test_the_first_login_leads_to_a_name_and_a_password(
    echo: Instance, open_page: OpenPage
) -> None:
    token = echo.python(_NEW_ACCOUNT, "fresh").strip()
    page = with_axe(open_page(None, expected="status of 400"))
    page.goto(f"/login?token={token}")
    page.wait_for_url("**/welcome")
    page.get_by_test_id("welcome-name").wait_for()
    assert violations(page) == []
    page.get_by_test_id("welcome-name").fill("reader")
    page.get_by_test_id("welcome-password").fill(GOOD)
    page.get_by_test_id("welcome-submit").click()
    expect(page.get_by_test_id("welcome-problem")).to_contain_text("has this name")
    page.get_by_test_id("welcome-name").fill("Ada")
    page.get_by_test_id("welcome-submit").click()
    expect(page.get_by_test_id("composer")).to_be_visible()
    assert page.url == f"{echo.url}/"
    page.goto("/welcome")
    page.wait_for_url(f"{echo.url}/")


def test_a_preset_is_applied_where_the_model_is_chosen(open_page: OpenPage) -> None:
    page = open_page("operator")
    page.get_by_test_id("answering").click()
    expect(page.get_by_test_id("preset-settings")).to_have_text("None yet: add one in the settings")
    page.get_by_test_id("preset-settings").click()
    page.get_by_test_id("style-max-tokens").fill("2")
    page.get_by_test_id("preset-name").fill("Two words")
    page.get_by_test_id("keep-preset").click()
    expect(page.get_by_test_id("presets")).to_contain_text("Two words")
    page.get_by_test_id("settings-back").click()
    chat = Chat(page)
    page.get_by_test_id("answering").click()
    page.get_by_test_id("preset").click()
    chip = page.get_by_test_id("preset-chip")
    expect(chip).to_have_text("Preset: Two words")
    assert ends(chat.ask("one two three four")) == "one two"
    page.reload()
    expect(chip).to_have_text("Preset: Two words")
    page.get_by_test_id("preset-end").click()
    expect(chip).to_have_count(0)
    assert ends(chat.ask("one two three four")).split()[-1] == "four"
    page.get_by_test_id("answering").click()
    page.get_by_test_id("preset").click()
    expect(chip).to_be_visible()
    page.get_by_test_id("conversation-settings").click()
    page.get_by_test_id("style-max-tokens").fill("3")  # it is a preset no more
    page.get_by_test_id("save-style").click()
    expect(page.get_by_test_id("style-note")).to_contain_text("Saved")
    page.get_by_test_id("close-dialog").click()
    expect(chip).to_have_count(0)


def test_instructions_and_sampling_are_used(open_page: OpenPage) -> None:
    page = settings_of(open_page())
    page.get_by_test_id("style-temperature").fill("9")
    page.get_by_test_id("save-style").click()
    expect(page.get_by_test_id("style-problem")).to_be_visible()
    page.get_by_test_id("style-temperature").fill("0.5")
    page.get_by_test_id("style-max-tokens").fill("3")
    page.get_by_test_id("preset-name").fill("Three words")
    page.get_by_test_id("keep-preset").click()
    expect(page.get_by_test_id("presets")).to_contain_text("Three words")
    page.get_by_test_id("save-style").click()
    expect(page.get_by_test_id("style-note")).not_to_be_empty()
    page.get_by_test_id("settings-back").click()
    chat = Chat(page)
    assert ends(chat.ask("one two three four five")) == "one two three"
    page.get_by_test_id("conversation-settings").click()
    dialog = page.get_by_test_id("conversation-dialog")
    dialog.get_by_test_id("style-max-tokens").fill("2")
    dialog.get_by_test_id("save-style").click()
    expect(dialog.get_by_test_id("style-note")).not_to_be_empty()
    dialog.get_by_test_id("close-dialog").click()
    expect(page.get_by_test_id("conversation-settings")).to_be_focused()
    assert ends(chat.ask("six seven eight nine")) == "six seven"
    answer = chat.answers.last
    answer.get_by_test_id("thumb-down").click()
    answer.get_by_test_id("thumb-note").fill("too short")
    answer.get_by_test_id("thumb-note").press("Enter")
    expect(answer.get_by_test_id("thumb-note")).to_have_count(0)
    page.reload()
    expect(chat.answers.last.get_by_test_id("thumb-down")).to_have_attribute("aria-pressed", "true")
    settings_of(page)
    expect(page.get_by_test_id("usage")).to_contain_text("echo")
    page.get_by_test_id("style-max-tokens").fill("")
    page.get_by_test_id("save-style").click()
    expect(page.get_by_test_id("style-note")).not_to_be_empty()


def test_an_empty_chat_says_what_is_free_and_offers_examples(open_page: OpenPage) -> None:
    page = open_page()
    expect(page.get_by_test_id("free-slots")).to_contain_text("of 6 slots are free")
    greeting = page.get_by_test_id("free-slots").bounding_box()
    composer = page.get_by_test_id("composer").bounding_box()
    card = page.get_by_test_id("model-select").locator("option[value=echo] .card").last
    expect(card).to_contain_text("6 of 6 slots free")
    page.get_by_test_id("model-select").click()
    expect(card).to_be_visible()
    page.keyboard.press("Escape")
    example = page.get_by_test_id("example").first
    place = example.bounding_box()
    assert greeting and composer and place
    assert greeting["y"] < composer["y"] < place["y"]
    example.click()
    expect(page.get_by_test_id("composer")).to_have_value(example.inner_text())


def test_keys_sessions_theme_and_language(echo: Instance, open_page: OpenPage) -> None:
    page = with_axe(settings_of(open_page()))
    page.reload()
    page.get_by_test_id("key-label").fill("a script")
    page.get_by_test_id("key-expires").select_option("30")
    page.get_by_test_id("key-limits").click()
    page.get_by_label("Chat, responses, messages").check()
    page.get_by_test_id("create-key").click()
    key = page.get_by_test_id("fresh-key").inner_text()
    bearer = {"Authorization": f"Bearer {key}"}
    assert httpx.get(f"{echo.url}/v1/models", headers=bearer).status_code == 200
    assert httpx.get(f"{echo.url}/api/conversations", headers=bearer).status_code == 403
    expect(page.get_by_test_id("keys")).to_contain_text("Only for: Chat, responses, messages")
    expect(page.get_by_test_id("sessions")).to_contain_text("Chrome, Linux")
    assert violations(page) == []
    page.get_by_role("button", name="Revoke the key a script").click()
    expect(page.get_by_test_id("keys").get_by_text("a script")).to_have_count(0)
    page.get_by_test_id("theme").select_option("dark")
    expect(page.locator("html")).to_have_attribute("data-theme", "dark")
    page.get_by_test_id("language").select_option("es")
    expect(page.get_by_role("heading", level=1)).to_have_text("Ajustes")
    page.reload()
    expect(page.get_by_role("heading", level=1)).to_have_text("Ajustes")
    expect(page.locator("html")).to_have_attribute("data-theme", "dark")


def test_a_password_is_changed_and_an_account_deleted(echo: Instance, open_page: OpenPage) -> None:
    echo.python(_ACCOUNT, "leaving", PASSWORD)
    page = settings_of(open_page("leaving", expected="status of 400"))
    page.get_by_test_id("current-password").fill("wrong")
    page.get_by_test_id("new-password").fill(GOOD)
    page.get_by_test_id("change-password").click()
    expect(page.get_by_test_id("password-problem")).to_contain_text("not your password")
    page.get_by_test_id("current-password").fill(PASSWORD)
    page.get_by_test_id("change-password").click()
    expect(page.get_by_test_id("password-status")).to_contain_text("changed")
    with page.expect_download() as download:
        page.get_by_test_id("export-all").click()
    assert download.value.suggested_filename.endswith(".json")
    page.get_by_test_id("delete-account").click()
    page.get_by_test_id("delete-password").fill(PASSWORD)
    page.get_by_test_id("delete-confirm").click()
    expect(page.get_by_test_id("delete-problem")).to_be_visible()
    page.get_by_test_id("delete-password").fill(GOOD)
    page.get_by_test_id("delete-confirm").click()
    page.wait_for_url(re.compile(f"^{re.escape(echo.url)}/$"))
    expect(page.get_by_test_id("login-username")).to_be_visible()


def test_errors_are_said_in_the_readers_language(open_page: OpenPage) -> None:
    login = open_page(None, locale="zh-CN", expected="status of 40[01]")
    login.get_by_test_id("login-username").fill("reader")
    login.get_by_test_id("login-password").fill("wrong")
    login.get_by_test_id("login-submit").click()
    expect(login.get_by_test_id("login-error")).to_have_text("用户名或密码错误。")

    page = open_page(locale="es-ES", expected="status of 404")
    page.route(
        "**/api/conversations",
        lambda route: route.continue_(post_data={"content": "x", "model": "no such model"}),
        times=1,
    )
    page.get_by_test_id("composer").fill("hola")
    page.get_by_test_id("composer").press("Enter")
    expect(page.get_by_test_id("toast")).to_contain_text("ningún modelo «no such model»")
