"""Answers that go on after they failed or were cut, and one message that two tabs want to send.

The model `echo` says a word every 50 ms, `quick` all at once (conftest.py).
"""

from contextlib import ExitStack
from pathlib import Path

import pytest
from playwright.sync_api import expect

from tests.e2e.browser import Chat, csrf, echoes, ends, words
from tests.e2e.conftest import OpenPage
from tests.instance import Instance
from tests.realbroker import NodeProcess

pytestmark = [pytest.mark.timeout(170), pytest.mark.usefixtures("models")]
MORE_TOKENS = 1024  # that a continued answer may have (api/chat/turns.py)


@pytest.fixture
def chat(open_page: OpenPage) -> Chat:
    """A new chat of a logged-in reader."""
    return Chat(open_page())


def test_a_failed_answer_says_why_and_is_tried_again(
    echo: Instance, chat: Chat, tmp_path: Path
) -> None:
    question = f"throw-once:{tmp_path / 'thrown'} {words(10)}"
    root = ("faulty-root", "--engine", "none")
    node = ("faulty-1", "--parent", "faulty-root", "--engine", "tests.faults.engine")
    with ExitStack() as nodes:
        for options in (root, node):
            nodes.enter_context(NodeProcess(echo.broker, *options, "--model", "faulty"))
        chat.page.reload()
        answer = chat.choose("faulty").ask(question)
        reason = answer.get_by_test_id("message-error")
        expect(reason).to_contain_text("a bug of the engine")
        expect(answer).to_have_attribute("data-status", "failed")
        chat.page.reload()
        expect(reason).to_contain_text("a bug of the engine")
        answer.get_by_test_id("retry").click()
        assert ends(answer) == question
        expect(reason).to_have_count(0)
        expect(chat.answers).to_have_count(1)


def test_an_answer_that_was_cut_by_its_length_continues(chat: Chat) -> None:
    ends(chat.choose("quick").ask("short"))
    written = chat.page.request.put(
        f"/api/conversations/{chat.conversation()}/preferences",
        data={"max_tokens": 5},
        headers=csrf(chat.page),
    )
    assert written.ok
    question = words(20)
    answer = chat.ask(question)
    assert ends(answer) == words(5)
    proceed = chat.page.get_by_test_id("continue")
    proceed.click()
    expect(proceed).to_be_enabled()
    whole = ends(answer)
    assert echoes(whole, question)
    assert len(whole.split()) == 5 + MORE_TOKENS


def test_a_queued_message_of_two_tabs_is_sent_once(open_page: OpenPage) -> None:
    """Both want to send it: the one that comes second is refused, and nobody is told."""
    first = Chat(open_page(expected="status of 409"))
    first.choose("echo").ask(words(40))
    first.writing("w2").wait_for()
    first.composer.fill("once")
    first.composer.press("Enter")
    expect(first.page.get_by_test_id("queued")).to_have_count(1)
    first.page.evaluate("Storage.prototype.setItem = () => {}")  # it cannot tell the other tab
    other_page = first.page.context.new_page()
    other_page.goto(first.page.url)
    second = Chat(other_page)
    for chat in (first, second):
        expect(chat.questions).to_have_text([words(40), "once"])
        assert ends(chat.answers.nth(1)) == "once"
        expect(chat.page.get_by_test_id("queued")).to_have_count(0)
        expect(chat.page.get_by_test_id("toast")).to_have_count(0)
