"""The chat in a real browser on a real instance: written, stopped, reloaded, renamed, and safe.

The model `echo` says a word every 50 ms, `steady` every 4 ms, `quick` all at once (conftest.py).
"""

import re
from typing import Any

import httpx
import pytest
from playwright.sync_api import Page, expect

from tests.e2e.browser import PHONE, Chat, echoes, ends, text_of, words
from tests.e2e.conftest import OpenPage
from tests.instance import PASSWORD, Instance, at_rest, jobs, total, tree_when

pytestmark = [pytest.mark.timeout(170), pytest.mark.usefixtures("models")]


@pytest.fixture
def chat(open_page: OpenPage) -> Chat:
    """A new chat of a logged-in reader."""
    return Chat(open_page())


def test_the_link_that_up_prints_logs_in_once(echo: Instance, open_page: OpenPage) -> None:
    token = echo.login_token()
    first = open_page(None)
    first.goto(f"/login?token={token}")
    first.get_by_test_id("welcome-later").click()  # nobody can log in as admin with a password yet
    expect(Chat(first).composer).to_be_visible()
    expect(first).to_have_url(f"{echo.url}/")

    second = open_page(
        None, expected=r"status of 403|favicon\.ico"
    )  # the refusal is a plain page without an icon
    refused = second.goto(f"/login?token={token}")
    assert refused is not None
    assert refused.status == 403
    expect(second.locator("body")).to_contain_text("./canopy login")


def test_the_answer_grows_word_by_word(chat: Chat) -> None:
    question = words(1000)
    answer = chat.ask(question)
    chat.writing("w3").wait_for()
    assert "w50" not in text_of(answer)
    chat.writing("w20").wait_for()
    chat.writing("w50").wait_for()
    expect(chat.questions).to_have_text([question])
    expect(chat.composer).to_be_editable()
    chat.stop.click()
    ends(answer, "stopped")


def test_a_chat_goes_on_after_an_answer_that_was_stopped_before_its_first_word(
    chat: Chat, program: httpx.Client, staff: httpx.Client
) -> None:
    with jobs(program, 6, words=2000):  # every slot
        tree_when(staff, lambda tree: total(tree, "running") == 6)
        answer = chat.ask("one")
        answer.get_by_test_id("waiting").wait_for()
        chat.stop.click()
        expect(answer).to_have_attribute("data-status", "stopped")
    tree_when(staff, at_rest)
    assert ends(chat.choose("quick").ask("two three")).split() == ["one", "two", "three"]


def test_the_page_shows_where_the_models_view_begins(chat: Chat) -> None:
    cut = chat.page.get_by_test_id("context-cut")
    chat.choose("quick")
    question = words(
        1700
    )  # two of them and an answer are more than a model of unknown context gets
    ends(chat.ask(question))
    expect(cut).to_have_count(0)
    ends(chat.ask(question))
    expect(cut).to_have_text("Earlier messages are not seen by the model any more")
    after_cut = cut.locator("xpath=following-sibling::*")
    expect(after_cut).to_have_count(2)  # the second question and its answer
    chat.page.reload()
    expect(cut).to_have_count(1)
    expect(after_cut).to_have_count(2)
    ends(chat.ask("in short"))
    expect(after_cut).to_have_count(4)


def test_who_waits_sees_the_place_in_the_line(
    chat: Chat, program: httpx.Client, staff: httpx.Client
) -> None:
    with jobs(program, 8, words=2000):  # there are 6 slots
        tree_when(staff, lambda tree: total(tree, "queued") == 2)
        answer = chat.ask("one two three")
        note = answer.get_by_test_id("waiting")
        expect(note).to_have_text(
            re.compile(r"(1st|2nd|3rd) in line for echo.*slots are taken", re.DOTALL)
        )
        expect(chat.page.get_by_test_id("waiting-spoken")).to_have_text(
            re.compile("(1st|2nd|3rd) in line for echo")
        )
    assert echoes(ends(answer), "one two three")
    expect(note).to_have_count(0)


def test_stop_keeps_the_text_and_frees_the_slot(chat: Chat, staff: httpx.Client) -> None:
    answer = chat.ask(words(2000))
    chat.writing("w5").wait_for()
    tree_when(staff, lambda tree: total(tree, "running") == 1)

    chat.stop.click()
    tree_when(staff, at_rest)  # 2,000 words take 100 s: only the stop can have freed the slot

    partial = ends(answer, "stopped")
    assert partial.startswith("w1 w2 w3 w4 w5")
    assert words(2000).startswith(partial)
    stored = stored_messages(chat)[-1]
    assert stored["status"] == "stopped"
    assert stored["content"].startswith(partial)
    assert echoes(ends(chat.choose("quick").ask("and on we go")), "and on we go")


def test_a_stopped_answer_is_still_there_after_a_reload(chat: Chat) -> None:
    answer = chat.ask(words(2000))
    chat.writing("w5").wait_for()
    chat.stop.click()
    partial = ends(answer, "stopped")
    chat.page.reload()
    assert ends(chat.answers.first, "stopped").startswith(partial)


def stored_messages(chat: Chat) -> list[dict[str, Any]]:
    """The open conversation's messages as the API tells them to this reader."""
    answer = chat.page.request.get(f"/api/conversations/{chat.conversation()}")
    assert answer.ok
    return answer.json()["messages"]


def test_the_model_select_lists_the_models(chat: Chat) -> None:
    select = chat.page.get_by_test_id("model-select")
    expect(select).to_have_value("echo")
    # other files' models may be listed, too, for the seconds after they leave
    expect(select.locator("option .name")).to_contain_text(["echo", "quick", "steady"])
    chat.choose("quick")
    ends(chat.ask("which one are you"))
    expect(select).to_have_value("quick")
    assert (
        chat.page.request.get(f"/api/conversations/{chat.conversation()}").json()["model"]
        == "quick"
    )


def test_a_reload_shows_the_conversation(chat: Chat) -> None:
    questions = ["one two three", "four five six"]
    for question in questions:
        ends(chat.choose("quick").ask(question))
    chat.page.reload()
    expect(chat.questions).to_have_text(questions)
    expect(chat.answers).to_have_count(2)
    for place, question in enumerate(questions):
        assert echoes(ends(chat.answers.nth(place)), question)


def test_a_reload_in_the_middle_of_an_answer_repeats_and_loses_nothing(chat: Chat) -> None:
    question = words(1000)
    chat.choose("steady").ask(question)
    chat.writing("w50").wait_for()
    chat.page.reload()
    chat.writing("w50").wait_for()
    assert echoes(ends(chat.answers.first), question)
    expect(chat.answers).to_have_count(1)


def test_an_answer_goes_on_while_nobody_looks(chat: Chat) -> None:
    question = words(1000)
    chat.choose("steady").ask(question)
    conversation = chat.conversation()
    chat.page.goto("about:blank")
    chat.page.goto("/")
    chat.entry(conversation).click()
    assert echoes(ends(chat.answers.first), question)
    assert echoes(stored_messages(chat)[-1]["content"], question)


def test_the_address_of_a_conversation_opens_it(chat: Chat, open_page: OpenPage) -> None:
    ends(chat.choose("quick").ask("find me again"))
    address = f"/c/{chat.conversation()}"
    chat.page.goto("about:blank")
    chat.page.goto(address)
    expect(chat.questions).to_have_text(["find me again"])

    stranger = open_page("operator", expected="404")
    stranger.goto(address)
    expect(
        stranger.get_by_text("This conversation does not exist, or it is not yours.")
    ).to_be_visible()


def test_markup_is_text_and_never_runs(chat: Chat) -> None:
    markup = """<img src=x onerror="window.ran=1"> <script>window.ran=2</script> <b>bold</b>"""
    answer = chat.choose("quick").ask(markup)
    assert echoes(ends(answer), markup)
    expect(chat.questions).to_have_text([markup])
    inside = "[data-testid=message-user], [data-testid=message-assistant] .markdown"
    assert chat.page.locator(inside).locator("img, script, b").count() == 0
    assert chat.page.evaluate("window.ran") is None

    # In the list of conversations, too, where the question is the title.
    expect(chat.entry(chat.conversation())).to_contain_text("<img src=x")
    assert chat.page.evaluate("window.ran") is None


def test_dangerous_links_in_an_answer_lead_nowhere(chat: Chat) -> None:
    answer = chat.choose("quick").ask(
        "[click](javascript:window.ran=1) and [fine](https://example.org/)"
    )
    ends(answer)
    assert {link.get_attribute("href") for link in answer.locator("a").all()} == {
        "https://example.org/"
    }


def test_on_a_phone_the_list_is_a_drawer_and_nothing_scrolls_sideways(open_page: OpenPage) -> None:
    page = open_page(**PHONE)
    chat = Chat(page)
    ends(chat.choose("quick").ask("x" * 120 + " ordinary words"))
    assert_no_sideways_scroll(page)

    new_chat = page.get_by_test_id("new-chat")
    expect(new_chat).not_to_be_in_viewport()
    page.get_by_test_id("sidebar-toggle").tap()
    expect(new_chat).to_be_in_viewport()
    assert_no_sideways_scroll(page)
    new_chat.tap()
    expect(new_chat).not_to_be_in_viewport()
    expect(chat.answers).to_have_count(0)
    assert_no_sideways_scroll(page)


def assert_no_sideways_scroll(page: Page) -> None:
    wide, seen = page.evaluate(
        "[document.scrollingElement.scrollWidth, document.scrollingElement.clientWidth]"
    )
    assert wide <= seen
    assert seen == 390


def test_who_is_not_logged_in_gets_the_login_page(open_page: OpenPage) -> None:
    page = open_page(None, expected=r"status of 40[01]")
    page.goto("/")
    expect(page.get_by_test_id("login-username")).to_be_visible()
    expect(page.locator("main")).to_contain_text("./canopy login")
    expect(page.get_by_test_id("composer")).to_have_count(0)

    page.get_by_test_id("login-username").fill("reader")
    page.get_by_test_id("login-password").fill("wrong")
    page.get_by_test_id("login-submit").click()
    expect(page.get_by_test_id("login-error")).to_contain_text(
        re.compile("wrong username or password", re.IGNORECASE)
    )

    page.get_by_test_id("login-password").fill(PASSWORD)
    page.get_by_test_id("login-submit").click()
    expect(page.get_by_test_id("composer")).to_be_visible()
    page.get_by_test_id("logout").click()
    expect(page.get_by_test_id("login-username")).to_be_visible()
    page.reload()
    expect(page.get_by_test_id("login-username")).to_be_visible()
