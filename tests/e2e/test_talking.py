"""Talking in a real browser: versions, answers that go on, messages that are queued, drafts.

The model `echo` says a word every 50 ms, `steady` every 4 ms, `quick` all at once (conftest.py).
"""

import re
from contextlib import ExitStack
from typing import Any

import httpx
import pytest
from playwright.sync_api import Locator, Page, expect

from tests.e2e.browser import PHONE, Chat, echoes, ends, text_of, words
from tests.e2e.conftest import OpenPage
from tests.instance import Instance, tree_when
from tests.realbroker import NodeProcess

pytestmark = [pytest.mark.timeout(170), pytest.mark.usefixtures("models")]


@pytest.fixture
def chat(open_page: OpenPage) -> Chat:
    """A new chat of a logged-in reader."""
    return Chat(open_page())


def tool(page: Page, message: Locator, testid: str) -> Locator:
    """A button below a message; those of questions show when the mouse is there."""
    message.hover()
    return message.locator("xpath=ancestor-or-self::*[contains(@class, 'turn')][1]").get_by_test_id(
        testid
    )


def test_an_edited_question_begins_a_branch_and_the_former_one_stays(chat: Chat) -> None:
    page = chat.page
    ends(chat.choose("quick").ask("first question"))
    ends(chat.ask("second question"))
    tool(page, chat.questions.nth(1), "edit").click()
    field = page.get_by_test_id("edit-field")
    expect(field).to_be_focused()
    field.fill("another question")
    field.press("Enter")
    expect(chat.questions).to_have_text(["first question", "another question"])
    assert ends(chat.answers.nth(1)) == "another question"
    version = page.get_by_test_id("version")
    expect(version).to_have_text("2 / 2")

    with page.expect_response(lambda response: response.request.method == "PATCH"):
        page.get_by_test_id("version-previous").click()
    expect(chat.questions).to_have_text(["first question", "second question"])
    expect(version).to_have_text("1 / 2")
    page.reload()
    expect(chat.questions).to_have_text(["first question", "second question"])

    ends(chat.ask("third question"))
    page.get_by_test_id("version-next").click()
    expect(chat.questions).to_have_text(["first question", "another question"])
    page.get_by_test_id("version-previous").click()
    expect(chat.questions).to_have_count(3)


def test_escape_leaves_an_edit_and_the_focus_returns(chat: Chat) -> None:
    ends(chat.choose("quick").ask("one question"))
    pencil = tool(chat.page, chat.questions.first, "edit")
    pencil.click()
    chat.page.get_by_test_id("edit-field").fill("something else")
    chat.page.get_by_test_id("edit-field").press("Escape")
    expect(chat.questions).to_have_text(["one question"])
    expect(pencil).to_be_focused()


def test_an_answer_is_given_again_also_by_another_model(chat: Chat) -> None:
    page = chat.page
    ends(chat.choose("quick").ask("a question"))
    page.get_by_test_id("regenerate").click()
    version = page.get_by_test_id("version")
    expect(version).to_have_text("2 / 2")
    ends(chat.answers.first)
    page.get_by_test_id("regenerate-with").click()
    page.get_by_role("menuitem", name="steady").click()
    expect(version).to_have_text("3 / 3")
    ends(chat.answers.first)
    expect(page.get_by_test_id("details")).to_have_text("steady on steady-1")
    expect(page.get_by_test_id("model-select")).to_have_value("quick")
    expect(chat.answers).to_have_count(1)


def test_a_stopped_answer_continues_where_it_was(chat: Chat) -> None:
    question = words(120)
    answer = chat.choose("echo").ask(question)
    chat.writing("w5").wait_for()
    chat.stop.click()
    partial = ends(answer, "stopped")
    chat.page.get_by_test_id("continue").click()
    whole = ends(answer)
    assert whole.startswith(partial)
    assert echoes(whole, question)
    assert len(whole.split()) == 120


def test_a_message_written_while_an_answer_runs_follows_it(chat: Chat) -> None:
    page = chat.page
    chat.choose("echo").ask(words(150))
    chat.writing("w2").wait_for()
    queued = page.get_by_test_id("queued")
    for text in ("not this one", "this one", "and this one"):
        chat.composer.fill(text)
        chat.composer.press("Enter")
    expect(queued).to_have_count(3)
    expect(chat.composer).to_have_value("")
    queued.first.get_by_test_id("remove-queued").click()
    chat.composer.fill("a draft")
    page.reload()
    expect(queued).to_have_count(2)
    expect(chat.composer).to_have_value("a draft")
    expect(chat.questions).to_have_text([words(150), "this one", "and this one"])
    ends(chat.answers.nth(2))
    expect(queued).to_have_count(0)
    expect(chat.composer).to_have_value("a draft")


def test_a_queued_message_can_be_taken_back(chat: Chat) -> None:
    chat.choose("echo").ask(words(400))
    chat.writing("w2").wait_for()
    chat.composer.fill("half a thought")
    chat.page.get_by_test_id("send").click()
    chat.page.get_by_test_id("edit-queued").click()
    expect(chat.composer).to_have_value("half a thought")
    expect(chat.page.get_by_test_id("queued")).to_have_count(0)
    chat.stop.click()
    expect(chat.questions).to_have_count(1)


def test_drafts_survive_a_reload_in_each_conversation(chat: Chat) -> None:
    page = chat.page
    ends(chat.choose("quick").ask("a conversation"))
    conversation = chat.conversation()
    chat.composer.fill("of the conversation")
    page.get_by_test_id("new-chat").click()
    expect(chat.composer).to_have_value("")
    chat.composer.fill("of a new one")
    page.reload()
    expect(chat.composer).to_have_value("of a new one")
    chat.entry(conversation).click()
    expect(chat.composer).to_have_value("of the conversation")


def test_who_answered_and_how_long_that_took(chat: Chat) -> None:
    page = chat.page
    answer = chat.choose("steady").ask(words(100))
    ends(answer)
    details = page.get_by_test_id("details")
    panel = chat.page.get_by_test_id("details-panel")
    expect(panel).to_have_count(0)
    details.hover()
    expect(page.get_by_test_id("trail").locator("li")).to_have_text(
        [re.compile("^steady-root"), re.compile("^steady-1")]  # and how long it waited there
    )
    expect(panel).to_contain_text("100 read, 100 written")
    expect(panel).to_contain_text(re.compile(r"\d+ tokens/s"))
    chat.composer.hover()
    expect(panel).to_have_count(0)
    details.focus()
    chat.page.keyboard.press("Shift+Tab")
    chat.page.keyboard.press("Tab")
    expect(panel).to_be_visible()
    chat.page.keyboard.press("Escape")
    expect(panel).to_have_count(0)


def test_an_answer_whose_node_dies_goes_on_and_says_so(echo: Instance, chat: Chat) -> None:
    question = words(150)
    engine = ("--engine", "echo", "--slots", "1", "--token-delay")
    below = ("--parent", "moving-root", "--model", "moving", *engine)
    slow, quick = (*below, "0.3"), (*below, "0.01")  # the second node starts while the first writes
    with ExitStack() as nodes:
        nodes.enter_context(
            NodeProcess(echo.broker, "moving-root", "--engine", "none", "--model", "moving")
        )
        first = nodes.enter_context(NodeProcess(echo.broker, "moving-1", *slow))
        chat.page.reload()
        answer = chat.choose("moving").ask(question)
        chat.writing("w2").wait_for()
        expect(chat.page.get_by_test_id("details")).to_have_text("moving on moving-1")
        second = nodes.enter_context(NodeProcess(echo.broker, "moving-2", *quick))
        first.process.kill()
        assert ends(answer) == question
        assert second.process.poll() is None
        expect(chat.page.get_by_test_id("moved")).to_be_visible()
        expect(chat.page.get_by_test_id("details")).to_have_text("moving on moving-2")


def test_while_every_node_is_paused_nothing_is_promised(
    echo: Instance, chat: Chat, staff: httpx.Client
) -> None:
    engine = ("--engine", "echo", "--slots", "1")
    with ExitStack() as nodes:
        nodes.enter_context(
            NodeProcess(echo.broker, "paused-root", "--engine", "none", "--model", "paused")
        )
        nodes.enter_context(
            NodeProcess(
                echo.broker, "paused-1", "--parent", "paused-root", "--model", "paused", *engine
            )
        )
        chat.page.reload()
        chat.choose("paused")
        assert staff.post("/api/tree/nodes/paused-1/drain").is_success
        tree_when(staff, lambda tree: node_of(tree, "paused-1")["state"] == "drained")
        answer = chat.ask("one two three")
        card = answer.get_by_test_id("waiting")
        expect(card).to_contain_text("Every node for paused is paused")
        expect(card).not_to_contain_text("about")
        assert staff.post("/api/tree/nodes/paused-1/resume").is_success
        assert ends(answer) == "one two three"


def node_of(tree: dict[str, Any], name: str) -> dict[str, Any]:
    [node] = [node for node in tree["nodes"] if node["name"] == name]
    return node


def test_a_text_that_is_too_long_stays_and_says_so(chat: Chat) -> None:
    chat.composer.fill("x" * 120_000)
    expect(chat.page.get_by_test_id("too-long")).to_have_text(
        "That is too long: 120,000 characters, at most 100,000."
    )
    expect(chat.page.get_by_test_id("send")).to_be_disabled()
    chat.composer.fill("")


def test_a_screen_reader_hears_sentences_and_no_single_words(chat: Chat) -> None:
    spoken = chat.page.get_by_test_id("answer-spoken")
    text = f"The first sentence is here. {words(60)} and then. {words(60)} the end"
    answer = chat.choose("steady").ask(text)
    expect(spoken).to_have_text(re.compile(r"^The first sentence is here\."))
    ends(answer)
    expect(spoken).to_have_text(re.compile("the end$"))


def test_the_same_in_a_second_tab(chat: Chat) -> None:
    """One event stream a tab: both show the same branch, and the same words as they come."""
    ends(chat.choose("quick").ask("from the first tab"))
    other_page = chat.page.context.new_page()
    other_page.goto(chat.page.url)
    other = Chat(other_page)
    expect(other.questions).to_have_text(["from the first tab"])
    chat.choose("steady").ask(words(600))
    other.writing("w5").wait_for()
    assert echoes(ends(other.answers.nth(1)), words(600))
    tool(other_page, other.questions.nth(1), "edit").click()
    other_page.get_by_test_id("edit-field").fill("edited there")
    other_page.get_by_test_id("edit-send").click()
    expect(chat.questions).to_have_text(["from the first tab", "edited there"])
    ends(chat.answers.nth(1))
    chat.page.get_by_test_id("version-previous").click()
    expect(other.questions).to_have_text(["from the first tab", words(600)])


def test_on_a_phone_versions_and_details_answer_to_taps(open_page: OpenPage) -> None:
    page = open_page(**PHONE)
    chat = Chat(page)
    ends(chat.choose("quick").ask("on a phone"))
    page.get_by_test_id("edit").tap()
    page.get_by_test_id("edit-field").fill("on this phone")
    page.get_by_test_id("edit-send").tap()
    expect(page.get_by_test_id("version")).to_have_text("2 / 2")
    assert text_of(chat.answers.first)
    page.get_by_test_id("version-previous").tap()
    expect(chat.questions).to_have_text(["on a phone"])
    panel = page.get_by_test_id("details-panel")
    page.get_by_test_id("details").tap()
    expect(panel).to_be_visible()
    page.get_by_test_id("details").tap()
    expect(panel).to_have_count(0)
