"""Two models side by side: both write, one is kept, one is refused, and every tab shows the same.

The model `echo` says a word every 50 ms, `steady` every 4 ms, `quick` all at once (conftest.py).
"""

import re

import pytest
from playwright.sync_api import Page, expect

from tests.e2e.browser import PHONE, Chat, text_of, words
from tests.e2e.conftest import OpenPage

pytestmark = [pytest.mark.timeout(170), pytest.mark.usefixtures("models")]


@pytest.fixture
def chat(open_page: OpenPage) -> Chat:
    return Chat(open_page())


def compare(chat: Chat, first: str, second: str) -> None:
    """Chooses two models."""
    chat.choose(first)
    chat.page.get_by_test_id("answering").click()
    chat.page.get_by_role("menuitemradio", name=second).click()
    expect(chat.page.get_by_test_id("comparing")).to_contain_text(f"Compared with {second}")


def ask(chat: Chat, text: str) -> None:
    chat.composer.fill(text)
    chat.composer.press("Enter")
    expect(chat.page.get_by_test_id("compared")).to_have_count(2)


def expect_status(page: Page, *statuses: str) -> None:
    """Of the two answers, from the left."""
    for place, status in enumerate(statuses):
        answer = page.get_by_test_id("compared").nth(place).get_by_test_id("message-assistant")
        expect(answer).to_have_attribute("data-status", status)


def test_both_write_and_the_one_that_is_kept_goes_on(chat: Chat) -> None:
    page = chat.page
    compare(chat, "steady", "quick")
    ask(chat, "which is quicker")
    left, right = page.get_by_test_id("compared").all()
    expect(left).to_have_attribute("aria-label", "steady")
    expect(right).to_have_attribute("aria-label", "quick")
    box_left, box_right = left.bounding_box(), right.bounding_box()
    assert box_left
    assert box_right
    assert box_left["x"] + box_left["width"] <= box_right["x"]
    assert box_left["y"] == box_right["y"]
    for column in (left, right):
        expect(column.get_by_test_id("copy-answer")).to_be_visible()
        expect(column.get_by_test_id("thumb-up")).to_be_visible()
        expect(column.get_by_test_id("details")).to_contain_text(
            str(column.get_attribute("aria-label"))
        )
    page.reload()
    page.get_by_test_id("keep").nth(1).click()
    expect(page.get_by_test_id("comparison")).to_have_count(0)
    expect(page.get_by_test_id("version")).to_have_text("2 / 2")
    expect(page.get_by_test_id("details")).to_contain_text("quick")
    ask(chat, "and the next question")  # still compared
    page.get_by_test_id("compare-end").click()
    expect(page.get_by_test_id("comparing")).to_have_count(0)
    expect_status(page, "done", "done")
    chat.composer.fill("on with the first")  # nobody has chosen: the left one
    chat.composer.press("Enter")
    expect(chat.questions).to_have_count(3)
    expect(page.get_by_test_id("comparison")).to_have_count(0)
    expect(chat.answers).to_have_count(3)
    expect(page.get_by_test_id("details").nth(1)).to_contain_text("steady")
    expect(page.get_by_test_id("version").nth(1)).to_have_text("1 / 2")


def test_a_reload_and_another_tab_while_both_write(chat: Chat) -> None:
    page = chat.page
    compare(chat, "echo", "steady")
    ask(chat, words(4000))  # `steady` writes for 16 s
    expect_status(page, "streaming", "streaming")
    page.reload()
    expect_status(page, "streaming", "streaming")
    expect(page.get_by_test_id("comparing")).to_be_visible()
    other = page.context.new_page()
    other.goto(page.url)
    expect_status(other, "streaming", "streaming")
    expect(other.get_by_test_id("comparing")).to_be_visible()
    page.get_by_test_id("stop-one").nth(1).click()  # it stays in its place while the text grows
    expect_status(page, "streaming", "stopped")
    expect_status(other, "streaming", "stopped")
    other.get_by_test_id("stop").click()
    expect_status(page, "stopped", "stopped")
    answer = page.get_by_test_id("compared").first.get_by_test_id("message-assistant")
    assert text_of(answer).startswith("w1 w2")
    other.get_by_test_id("keep").first.click()
    expect(page.get_by_test_id("comparison")).to_have_count(0)
    expect(page.get_by_test_id("version")).to_have_text("1 / 2")


def test_the_stop_button_stops_both(chat: Chat) -> None:
    compare(chat, "echo", "steady")
    ask(chat, words(1500))
    expect_status(chat.page, "streaming", "streaming")
    chat.stop.click()
    expect_status(chat.page, "stopped", "stopped")
    chat.page.get_by_test_id("continue").first.click()
    expect_status(chat.page, "streaming", "stopped")
    chat.page.get_by_test_id("continue").last.click()  # the one beside it does not wait for it
    expect_status(chat.page, "streaming", "streaming")
    chat.stop.click()


def test_a_refused_second_answer_says_why_in_its_place(open_page: OpenPage) -> None:
    page = open_page("reader", expected="status of 429", service_workers="block")
    chat = Chat(page)
    compare(chat, "quick", "steady")
    refusal = '{"error": {"message": "you have 2 requests already, as many as may run"}}'
    page.route("**/regenerate", lambda route: route.fulfill(status=429, body=refusal))
    chat.composer.fill("one and two")
    chat.composer.press("Enter")
    column = page.get_by_test_id("compared-refused")
    expect(column).to_contain_text("You have 2 requests already, as many as may run")
    expect_status(page, "done")
    expect(page.get_by_test_id("toast")).to_have_count(0)
    page.unroute("**/regenerate")
    column.get_by_test_id("compare-again").click()
    expect_status(page, "done", "done")


def test_one_model_alone_has_no_other_to_compare_with(open_page: OpenPage) -> None:
    page = open_page(service_workers="block")
    one = {"ready": True, "nodes": 1, "slots": 1, "free": 1, "waiting": 0, "context": None}
    models = {"models": [{"id": "echo", **one}], "default": "echo"}
    page.route("**/api/models", lambda route: route.fulfill(json=models))
    page.reload()
    expect(page.get_by_test_id("model-select").locator("option")).to_have_count(1)
    page.get_by_test_id("answering").click()
    expect(page.get_by_test_id("compare-none")).to_have_text(re.compile("Only one model is served"))
    expect(page.get_by_test_id("compare-none")).to_have_attribute("aria-disabled", "true")
    page.keyboard.press("Escape")
    expect(page.get_by_test_id("answering")).to_be_focused()


def test_on_a_phone_one_at_a_time(open_page: OpenPage) -> None:
    page = open_page(**PHONE)
    chat = Chat(page)
    compare(chat, "quick", "steady")
    ask(chat, "on a phone")
    expect_status(page, "done", "done")
    left, right = page.get_by_test_id("compared").all()
    expect(left).to_be_in_viewport(ratio=0.5)
    expect(right).not_to_be_in_viewport(ratio=0.5)
    tabs = page.get_by_test_id("compared-tab")
    expect(tabs).to_have_text(["quick", "steady"])
    tabs.nth(1).tap()
    expect(right).to_be_in_viewport(ratio=0.5)
    expect(tabs.nth(1)).to_have_attribute("aria-pressed", "true")
    right.get_by_test_id("details").tap()
    expect(right.get_by_test_id("details-panel")).to_be_in_viewport(ratio=1)
    page.get_by_test_id("keep").nth(1).tap()
    expect(page.get_by_test_id("details")).to_contain_text("steady")
    assert page.evaluate("document.documentElement.scrollWidth <= innerWidth")
