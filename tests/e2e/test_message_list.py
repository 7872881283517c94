"""A long conversation: drawn where it is read, without anything moving under the reader's eyes."""

import pytest
from playwright.sync_api import Locator, Page, expect

from tests.e2e.browser import Chat, ends, words
from tests.e2e.conftest import OpenPage
from tests.e2e.stored import dialogue, store_conversations
from tests.instance import Instance

pytestmark = [pytest.mark.timeout(170), pytest.mark.usefixtures("models")]

_WATCH_SHIFTS = """
window.shifts = [];
new PerformanceObserver(list => {
  for (const entry of list.getEntries()) if (!entry.hadRecentInput) window.shifts.push(entry.value);
}).observe({ type: "layout-shift", buffered: true });
"""
_IN_THE_MIDDLE = """[...document.querySelectorAll("[data-testid=message-assistant]")]
    .map(message => message.closest(".lazy"))
    .find(message => message.getBoundingClientRect().bottom > innerHeight / 2)"""
_FRAMES = "new Promise(done => requestAnimationFrame(() => requestAnimationFrame(done)))"


@pytest.fixture
def long_chat(echo: Instance, open_page: OpenPage) -> Chat:
    """Sixty answers of some paragraphs; each says its number."""
    answers = [
        f"## Answer {number}\n\n" + f"Some words of answer-{number}, and **more**.\n\n" * 12
        for number in range(1, 61)
    ]
    [conversation] = store_conversations(echo, "reader", [("long", dialogue(*answers))], "steady")
    page = open_page("reader")
    page.add_init_script(_WATCH_SHIFTS)
    page.goto(f"/c/{conversation}")
    page.get_by_role("heading", name="Answer 60").wait_for()
    return Chat(page)


def scroller(page: Page) -> Locator:
    return page.get_by_role("region", name="Messages")


def distance_to_end(page: Page) -> float:
    return float(
        scroller(page).evaluate("each => each.scrollHeight - each.scrollTop - each.clientHeight")
    )


def test_it_opens_at_its_end_and_draws_what_is_read(long_chat: Chat) -> None:
    page = long_chat.page
    expect(long_chat.answers).to_have_count(60)
    page.evaluate(_FRAMES)
    assert distance_to_end(page) <= 1
    assert page.locator(".markdown").count() < 20
    assert sum(page.evaluate("window.shifts")) < 0.05

    # What is not drawn yet is there as text, for the browser's search.
    expect(long_chat.answers.nth(2)).to_contain_text("Some words of answer-3")
    long_chat.answers.first.scroll_into_view_if_needed()
    expect(page.get_by_role("heading", name="Answer 1", exact=True)).to_be_visible()


def test_the_browsers_search_finds_what_is_far_away(long_chat: Chat) -> None:
    page = long_chat.page
    page.keyboard.press("Control+f")
    expect(page.locator(".markdown")).to_have_count(60)
    assert distance_to_end(page) <= 1
    # As it is read: the source has asterisks there.
    assert page.evaluate("window.find('answer-3, and more.', false, false, true)")
    page.evaluate("getSelection().focusNode.parentElement.scrollIntoView({ block: 'center' })")
    expect(page.get_by_role("heading", name="Answer 3", exact=True)).to_be_in_viewport()
    page.evaluate(_FRAMES)
    assert page.evaluate("getSelection().toString()") == "answer-3, and more."


def test_what_is_read_stays_in_its_place(long_chat: Chat) -> None:
    page = long_chat.page
    scroller(page).evaluate("each => { each.scrollTop -= 4000 }")
    page.evaluate(_FRAMES)
    seen = page.evaluate_handle(_IN_THE_MIDDLE)
    place = "element => element.getBoundingClientRect().top"
    before = page.evaluate(place, seen)
    # Answers above it are drawn in the meantime, and become higher or lower than was estimated.
    page.evaluate("new Promise(done => requestIdleCallback(done, { timeout: 1000 }))")
    page.evaluate(_FRAMES)
    assert abs(page.evaluate(place, seen) - before) <= 1


def test_a_long_message_of_ones_own_is_folded(open_page: OpenPage) -> None:
    chat = Chat(open_page())
    text = "\n".join(f"line {number}" for number in range(1, 41))
    ends(chat.choose("quick").ask(text))
    question, fold = chat.questions.first, chat.page.get_by_test_id("fold")
    expect(fold).to_have_text("Show all")
    expect(fold).to_have_attribute("aria-expanded", "false")
    folded = question.bounding_box()
    fold.focus()
    chat.page.keyboard.press("Enter")
    expect(fold).to_have_attribute("aria-expanded", "true")
    whole = question.bounding_box()
    assert folded and whole
    assert folded["height"] < 400 < whole["height"]
    assert question.inner_text() == text
    fold.click()
    expect(fold).to_have_text("Show all")
    expect(question).to_be_in_viewport()
    ends(chat.ask("in short"))
    expect(fold).to_have_count(1)


def test_it_follows_an_answer_unless_the_reader_went_away(long_chat: Chat) -> None:
    page = long_chat.page
    long_chat.ask(words(1600))
    long_chat.writing("w100").wait_for()
    page.evaluate(_FRAMES)
    assert distance_to_end(page) < 200  # a line may have come since

    latest = page.get_by_role("button", name="Go to the latest message")
    expect(latest).to_have_count(0)
    scroller(page).hover()
    page.mouse.wheel(0, -1500)
    expect(latest).to_be_visible()
    place = scroller(page).evaluate("each => each.scrollTop")
    long_chat.writing("w400").wait_for()
    assert abs(scroller(page).evaluate("each => each.scrollTop") - place) <= 1500
    assert distance_to_end(page) > 500
    latest.click()
    page.evaluate(_FRAMES)
    assert distance_to_end(page) < 200
    expect(latest).to_have_count(0)
    long_chat.stop.click()
