"""Text files and long pasted texts: attached, read by the model, kept, shown again, refused.

The model `quick` repeats what it reads, attachments included (conftest.py).
"""

import re
from typing import Any

import pytest
from playwright.sync_api import FilePayload, Locator, Page, expect

from tests.e2e.browser import PHONE, Chat, ends, words
from tests.e2e.conftest import OpenPage

pytestmark = [pytest.mark.timeout(170), pytest.mark.usefixtures("models")]

NOTES: FilePayload = {"name": "notes.md", "mimeType": "text/markdown", "buffer": b"oak fir ash"}
_PASTE = """(field, [text, file]) => {
  const data = new DataTransfer();
  if (text) data.setData("text/plain", text);
  if (file) data.items.add(new File(["x"], file, { type: "image/png" }));
  const event = { clipboardData: data, bubbles: true, cancelable: true };
  return field.dispatchEvent(new ClipboardEvent("paste", event));
}"""
_DRAG = """type => {
  const data = new DataTransfer();
  data.items.add(new File(["a,b\\n1,2"], "table.csv", { type: "text/csv" }));
  const event = { dataTransfer: data, bubbles: true, cancelable: true };
  document.querySelector("main").dispatchEvent(new DragEvent(type, event));
}"""


@pytest.fixture
def chat(open_page: OpenPage) -> Chat:
    return Chat(open_page())


def attach(page: Page, *files: FilePayload) -> None:
    """Chooses files, as with the paperclip."""
    page.get_by_test_id("attach-input").set_input_files(list(files))


def paste(chat: Chat, text: str = "", file: str = "") -> bool:
    """Pastes; true if the text goes into the field as ever."""
    return bool(chat.composer.evaluate(_PASTE, [text, file]))


def chips(within: Page | Locator) -> Locator:
    return within.get_by_test_id("attachment")


def test_a_file_is_read_by_the_model_and_shown_with_its_message(chat: Chat) -> None:
    page = chat.page
    with page.expect_file_chooser() as chooser:
        page.get_by_test_id("attach").click()
    chooser.value.set_files([NOTES])
    draft = page.get_by_test_id("draft-attachments")
    expect(chips(draft)).to_have_text(re.compile(r"notes\.md\s*11 B"))
    page.reload()
    expect(chips(draft)).to_have_text(re.compile("notes"))  # kept as the draft is
    answer = chat.choose("quick").ask("Which is an evergreen?")
    said = ends(answer)
    assert "Attached file: notes.md" in said
    assert "oak fir ash" in said
    assert "Which is an evergreen?" in said
    expect(draft).to_have_count(0)
    for _ in range(2):
        chips(page).get_by_test_id("attachment-open").click()
        expect(page.get_by_test_id("attachment-preview")).to_contain_text("oak fir ash")
        page.keyboard.press("Escape")
        page.reload()
        expect(chips(page)).to_have_count(1)
    other = Chat(page.context.new_page())
    other.page.goto(page.url)
    expect(chips(other.page)).to_have_text(re.compile(r"notes\.md"))


def test_editing_keeps_the_files_and_can_take_them_away(chat: Chat) -> None:
    page = chat.page
    attach(page, NOTES, {**NOTES, "name": "other.txt", "buffer": b"elm"})
    expect(chips(page)).to_have_count(2)
    ends(chat.choose("quick").ask("one"))
    page.get_by_test_id("edit").click()
    form = page.get_by_role("form", name="Edit your message")
    chips(form).nth(1).get_by_test_id("attachment-remove").click()
    page.get_by_test_id("edit-field").fill("two")
    page.get_by_test_id("edit-send").click()
    expect(chat.questions).to_have_text(["two"])
    expect(chips(page)).to_have_text([re.compile(r"notes\.md")])
    assert "elm" not in ends(chat.answers.first)
    page.get_by_test_id("version-previous").click()
    expect(chips(page)).to_have_count(2)


def test_a_long_paste_becomes_a_chip_and_can_go_back_into_the_field(chat: Chat) -> None:
    page = chat.page
    assert paste(chat, "a short text")  # into the field
    long = words(600)
    assert not paste(chat, long)
    expect(chips(page)).to_have_text([re.compile(r"Pasted text\.txt.*kB", re.DOTALL)])
    expect(chat.composer).to_have_value("")
    chips(page).get_by_test_id("attachment-open").click()
    page.get_by_test_id("attachment-insert").click()
    expect(chips(page)).to_have_count(0)
    expect(chat.composer).to_have_value(long)
    chat.composer.fill("")


def test_dropped_files_are_attached(chat: Chat) -> None:
    page = chat.page
    chat.composer.wait_for()
    page.evaluate(_DRAG, "dragover")
    expect(chat.composer).to_have_attribute("placeholder", "Drop text files here")
    page.evaluate(_DRAG, "drop")
    expect(chips(page)).to_have_text([re.compile(r"table\.csv")])
    expect(chat.composer).to_have_attribute("placeholder", "Ask anything")
    chips(page).get_by_test_id("attachment-remove").click()
    expect(chips(page)).to_have_count(0)


def test_what_is_no_text_or_too_long_is_refused_in_words(chat: Chat) -> None:
    page = chat.page
    toast = page.get_by_test_id("toast")
    paste(chat, file="photo.png")
    expect(toast).to_contain_text("photo.png is an image; only text can be attached.")
    attach(page, {**NOTES, "name": "long.log", "buffer": b"x" * 120_000})
    expect(toast.last).to_contain_text("long.log is too long: 120,000 characters, at most 100,000.")
    expect(chips(page)).to_have_count(0)


def test_files_wait_with_their_message(chat: Chat) -> None:
    page = chat.page
    chat.choose("steady").ask(words(400))
    chat.writing("w2").wait_for()
    attach(page, NOTES)
    page.get_by_test_id("send").click()
    expect(page.get_by_test_id("queued")).to_contain_text("notes.md")
    expect(page.get_by_test_id("draft-attachments")).to_have_count(0)
    expect(chips(page)).to_have_count(1)  # sent
    assert "oak fir ash" in ends(chat.answers.nth(1))


def test_found_shared_and_exported(chat: Chat) -> None:
    page = chat.page
    attach(page, {**NOTES, "buffer": b"the sequoia of the attachment"})
    ends(chat.choose("quick").ask("about trees"))
    conversation = chat.conversation()
    page.keyboard.press("Control+k")
    page.get_by_test_id("search-input").fill("sequoia attachment")
    expect(page.get_by_test_id("search-result").first).to_contain_text("sequoia")
    page.keyboard.press("Escape")
    document: dict[str, Any] = page.request.get(
        f"/api/conversations/{conversation}/export?format=json"
    ).json()
    [question, _] = document["conversations"][0]["messages"]
    assert question["attachments"][0]["text"] == "the sequoia of the attachment"
    chat.menu(conversation, "share")
    page.get_by_test_id("share-make").click()
    page.goto(page.get_by_test_id("share-link").input_value())
    chips(page).get_by_test_id("attachment-open").click()
    expect(page.get_by_test_id("attachment-preview")).to_contain_text("the sequoia")


def test_on_a_phone(open_page: OpenPage) -> None:
    page = open_page(**PHONE)
    chat = Chat(page)
    attach(page, NOTES, {**NOTES, "name": f"{'a long name ' * 8}.txt"})
    expect(chips(page)).to_have_count(2)
    assert page.evaluate("document.documentElement.scrollWidth <= innerWidth")
    ends(chat.choose("quick").ask("on a phone"))
    chips(page).first.get_by_test_id("attachment-open").tap()
    expect(page.get_by_test_id("attachment-preview")).to_be_visible()
