"""A real Chromium, and the pages as a reader handles them."""

import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Self

import pytest
from playwright.sync_api import Browser, Locator, Page, expect, sync_playwright

from cli.prepare import system
from tests.instance import PASSWORD, WAIT_SECONDS

ARGUMENTS = [
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--ignore-certificate-errors",  # of the tests' own certificates; else no service worker starts
]
WAIT_MS = 1000 * WAIT_SECONDS  # for whatever a page is to show or to do
PHONE = {"viewport": {"width": 390, "height": 844}, "is_mobile": True, "has_touch": True}


@contextmanager
def launched() -> Iterator[Browser]:
    """The system's Chromium with a profile of its own. Without one the tests fail, not skip."""
    program = system.browser()
    if program is None:
        pytest.fail(f"these tests need a real browser; run: {system.remedy(['chromium'])}")
    expect.set_options(timeout=WAIT_MS)
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=program, args=ARGUMENTS)
        try:
            yield browser
        finally:
            browser.close()


def watched(page: Page, complain: Callable[[str], object]) -> None:
    """Reports the page's errors: uncaught ones, and what its console shows in red."""
    page.on("pageerror", lambda error: complain(f"uncaught: {error}"))
    page.on(
        "console",
        lambda message: (
            complain(f"{message.text} {message.location}") if message.type == "error" else None
        ),
    )


def close_dialog(page: Page) -> None:
    """Escape, and the end of the dialog: until then the page takes no keys and no clicks."""
    page.keyboard.press("Escape")
    expect(page.locator("dialog[open]")).to_have_count(0)


def log_in(page: Page, user: str, start: str = "/") -> None:
    """With the name and the password, as people do. `start`: the page's address."""
    page.goto(start)
    page.get_by_test_id("login-username").fill(user)
    page.get_by_test_id("login-password").fill(PASSWORD)
    page.get_by_test_id("login-submit").click()
    expect(page.get_by_test_id("composer")).to_be_visible()


def csrf(page: Page) -> dict[str, str]:
    """The header for changes that a test sends beside the page, with the page's session."""
    cookies = {each["name"]: each["value"] for each in page.context.cookies()}
    return {"X-CSRFToken": cookies["csrftoken"]}


class Chat:
    """The chat page."""

    def __init__(self, page: Page) -> None:
        self.page = page
        self.composer = page.get_by_test_id("composer")
        self.questions = page.get_by_test_id("message-user")
        self.answers = page.get_by_test_id("message-assistant")
        self.stop = page.get_by_test_id("stop")
        self.conversations = page.get_by_test_id("conversation-item")

    def choose(self, model: str) -> Self:
        """Selects the model that answers from now on."""
        self.page.get_by_test_id("model-select").select_option(model)
        return self

    def ask(self, text: str) -> Locator:
        """Sends a question; its answer as soon as the page shows one."""
        before = self.answers.count()
        self.composer.fill(text)
        self.composer.press("Enter")
        answer = self.answers.nth(before)
        answer.wait_for()
        return answer

    def writing(self, word: str) -> Locator:
        """An answer that is still written and shows this word already."""
        shown = re.compile(rf"\b{re.escape(word)}\b")
        return self.page.locator(
            "[data-testid=message-assistant][data-status=streaming]", has_text=shown
        )

    def conversation(self) -> str:
        """The open conversation's id, as its address has it."""
        self.page.wait_for_url("**/c/*")
        return self.page.url.rpartition("/c/")[2]

    def menu(self, conversation: str, action: str) -> None:
        """Chooses from the menu of the conversation in the list."""
        entry = self.entry(conversation)
        entry.hover()
        entry.get_by_test_id("conversation-menu").click()
        self.page.get_by_test_id(f"menu-{action}").click()

    def entry(self, conversation: str) -> Locator:
        """The conversation in the list."""
        return self.page.locator(f"[data-testid=conversation-item][data-id='{conversation}']")


def ends(answer: Locator, status: str = "done") -> str:
    """Waits for the answer's end in that status; its text."""
    expect(answer).to_have_attribute("data-status", status)
    return text_of(answer)


def text_of(answer: Locator) -> str:
    """What the answer says, without the buttons below it."""
    return answer.locator(".markdown").inner_text().strip()


def echoes(text: str, question: str) -> bool:
    """Whether the text repeats the question's words (the echo engine), without a gap or a double.

    Runs of spaces count as one, as they do on a page.
    """
    said, asked = text.split(), question.split()
    return len(said) >= len(asked) and all(
        word == asked[place % len(asked)] for place, word in enumerate(said)
    )


def words(count: int) -> str:
    """A text of `count` different words, so that a gap or a repetition shows."""
    return " ".join(f"w{number}" for number in range(1, count + 1))
