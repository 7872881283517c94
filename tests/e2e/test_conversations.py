"""The list of conversations, their search, shares and files, in a real browser.

The model `quick` says everything at once (conftest.py).
"""

import json
import re
from pathlib import Path
from typing import Any

import pytest
from playwright.sync_api import expect

from tests.e2e.browser import PHONE, Chat, csrf, ends, text_of, words
from tests.e2e.conftest import OpenPage

pytestmark = [pytest.mark.timeout(170), pytest.mark.usefixtures("models")]


@pytest.fixture
def chat(open_page: OpenPage) -> Chat:
    """A new chat of a logged-in reader."""
    return Chat(open_page())


def begin(chat: Chat, question: str) -> str:
    """A new conversation with one question and its whole answer; its id."""
    chat.page.get_by_test_id("new-chat").click()
    expect(chat.answers).to_have_count(0)
    ends(chat.choose("quick").ask(question))
    return chat.conversation()


def test_conversations_are_renamed_pinned_moved_and_deleted_with_a_way_back(chat: Chat) -> None:
    page = chat.page
    first = begin(chat, "the first subject")
    second = begin(chat, "the second subject")

    chat.menu(first, "rename")
    page.get_by_test_id("rename-input").fill("a better title")
    page.get_by_test_id("rename-input").press("Enter")
    expect(chat.entry(first)).to_have_text("a better title")
    chat.menu(first, "pin")
    expect(chat.conversations.first).to_have_attribute("data-id", first)

    chat.menu(second, "delete")
    expect(chat.entry(second)).to_have_count(0)
    expect(page).to_have_url(re.compile(r"/$"))
    expect(page.locator("[data-testid=conversation-item] a:focus")).to_have_count(1)
    page.get_by_test_id("toast-action").click()
    expect(chat.entry(second)).to_be_visible()
    expect(page).to_have_url(re.compile(rf"/c/{second}$"))
    expect(chat.questions).to_have_text(["the second subject"])

    chat.menu(second, "move")
    page.get_by_test_id("folder-name").fill("Subjects")
    page.get_by_test_id("folder-name").press("Enter")
    folder = page.locator("[data-testid=section][data-key='folder:Subjects']")
    expect(folder).to_contain_text("1")
    expect(chat.entry(second)).to_have_count(0)
    folder.click()
    expect(chat.entry(second)).to_be_visible()

    page.goto("/")
    expect(chat.entry(first)).to_have_text("a better title")
    chat.menu(first, "select")
    page.get_by_test_id("delete-selected").click()
    expect(chat.entry(first)).to_have_count(0)


def test_a_second_tab_shows_what_the_first_one_does(chat: Chat, open_page: OpenPage) -> None:
    conversation = begin(chat, "what both shall see")
    other = Chat(open_page(expected="status of 404"))
    other.page.goto(f"/c/{conversation}")
    expect(other.questions).to_have_text(["what both shall see"])
    question = words(60)
    answer = chat.choose("echo").ask(question)
    other.writing("w5").wait_for()
    expect(other.questions).to_have_text(["what both shall see", question])
    ends(answer)
    assert ends(other.answers.nth(1)) == text_of(answer)
    chat.menu(conversation, "rename")
    chat.page.get_by_test_id("rename-input").fill("seen by both")
    chat.page.get_by_test_id("rename-input").press("Enter")
    expect(other.entry(conversation)).to_have_text("seen by both")
    chat.menu(conversation, "delete")
    expect(other.page.locator("main")).to_contain_text("Nothing to show here")
    expect(other.entry(conversation)).to_have_count(0)


def test_a_message_from_a_stale_view_stays_in_the_field(open_page: OpenPage) -> None:
    chat = Chat(open_page(expected="ERR_FAILED|status of 409"))
    conversation = begin(chat, "seen by a program, too")
    page = chat.page
    page.route("**/api/events*", lambda route: route.abort())  # this page is told nothing
    page.reload()
    expect(chat.answers).to_have_count(1)
    sent = page.request.post(
        f"/api/conversations/{conversation}/messages",
        data={"content": "from elsewhere", "model": "quick"},
        headers=csrf(page),
    )
    assert sent.ok, sent.text()
    chat.composer.fill("what I typed")
    chat.composer.press("Enter")
    expect(page.get_by_test_id("toast")).to_contain_text("changed elsewhere")
    expect(chat.composer).to_have_value("what I typed")
    expect(chat.questions).to_have_text(["seen by a program, too", "from elsewhere"])


def test_a_temporary_chat_is_not_listed_and_goes_with_its_reader(chat: Chat) -> None:
    page = chat.page
    page.get_by_test_id("temporary").click()
    ends(chat.choose("quick").ask("only for now"))
    conversation = chat.conversation()
    expect(page.get_by_test_id("temporary-note")).to_be_visible()
    page.reload()
    expect(chat.questions).to_have_text(["only for now"])
    expect(chat.entry(conversation)).to_have_count(0)
    with page.expect_response(
        lambda answer: answer.request.method == "DELETE" and conversation in answer.url
    ) as deleted:
        page.get_by_test_id("new-chat").click()
    assert deleted.value.status == 204


def test_a_refused_first_message_leaves_no_conversation(open_page: OpenPage) -> None:
    chat = Chat(open_page(expected="status of 400|status of 404"))
    expect(chat.conversations.first).to_be_visible()
    before = chat.page.request.get("/api/conversations").json()["conversations"]
    chat.page.route(
        "**/api/conversations",
        lambda route: route.continue_(post_data={"content": "x", "model": "no such model"}),
        times=1,
    )
    chat.composer.fill("refused")
    chat.composer.press("Enter")
    expect(chat.page.get_by_test_id("toast")).to_be_visible()
    expect(chat.composer).to_have_value("refused")
    after = chat.page.request.get("/api/conversations").json()["conversations"]
    assert [each["id"] for each in after] == [each["id"] for each in before]


def test_a_search_finds_titles_and_messages_by_keyboard(chat: Chat) -> None:
    conversation = begin(chat, "the wombat's <b>burrow</b>")
    begin(chat, "something else")
    page = chat.page
    page.keyboard.press("Control+k")
    search = page.get_by_test_id("search-input")
    expect(search).to_be_focused()
    search.fill("BURROW wombat")
    result = page.get_by_test_id("search-result")
    expect(result).to_have_count(1)
    expect(result.locator("mark").first).to_have_text("wombat")
    expect(result).to_contain_text("<b>burrow</b>")
    search.press("Enter")
    expect(page).to_have_url(re.compile(rf"/c/{conversation}$"))
    page.keyboard.press("Control+k")
    page.get_by_test_id("search-input").fill("no such words anywhere")
    expect(page.get_by_role("status").filter(has_text="Nothing has")).to_be_visible()
    page.keyboard.press("Escape")
    expect(page.get_by_test_id("search-dialog")).to_have_count(0)


def test_a_shared_link_shows_the_past_to_everybody_until_it_is_revoked(
    chat: Chat, open_page: OpenPage
) -> None:
    conversation = begin(chat, "for everybody")
    chat.menu(conversation, "share")
    chat.page.get_by_test_id("share-make").click()
    link = chat.page.get_by_test_id("share-link").input_value()
    chat.page.get_by_test_id("dialog-close").click()
    ends(chat.ask("a later secret"))

    stranger = open_page(None, expected="404")
    answer = stranger.goto(link)
    assert answer is not None
    assert answer.headers["cache-control"] == "no-store"
    assert "noindex" in answer.headers["x-robots-tag"]
    expect(stranger.get_by_test_id("shared")).to_contain_text("for everybody")
    expect(stranger.get_by_test_id("shared")).not_to_contain_text("secret")

    chat.menu(conversation, "share")
    chat.page.get_by_test_id("share-revoke").click()
    expect(chat.page.get_by_test_id("share-revoke")).to_have_count(0)
    stranger.reload()
    expect(stranger.locator("h1")).to_have_text("This link does not work")


def test_what_is_exported_can_be_imported_with_its_branches(
    chat: Chat, open_page: OpenPage, tmp_path: Path
) -> None:
    begin(chat, "an old subject")
    page = chat.page
    page.get_by_test_id("transfer").click()
    with page.expect_download() as download:
        page.get_by_test_id("export-all").click()
    file = tmp_path / "all.json"
    download.value.save_as(file)
    document = json.loads(file.read_text())
    assert "an old subject" in [each["title"] for each in document["conversations"]]
    page.get_by_test_id("import-file").set_input_files(file)
    report = page.get_by_test_id("import-report")
    expect(report).to_contain_text(f"{len(document['conversations'])} w")  # "were here already"
    foreign = tmp_path / "conversations.json"
    foreign.write_text(json.dumps([_of_chatgpt("From elsewhere")]))
    page.get_by_test_id("import-file").set_input_files(foreign)
    expect(report).to_contain_text("1 conversation came in, with 2 messages.")
    foreign.write_text("[1")
    page.get_by_test_id("import-file").set_input_files(foreign)
    expect(page.get_by_test_id("transfer-dialog").get_by_role("alert")).to_be_visible()
    page.get_by_test_id("dialog-close").click()
    chat.conversations.filter(has_text="From elsewhere").locator("a").click()
    expect(chat.questions).to_have_text(["Where from?"])


def _of_chatgpt(title: str) -> dict[str, Any]:
    def node(parent: str | None, role: str, text: str) -> dict[str, Any]:
        message = {"author": {"role": role}, "content": {"parts": [text]}}
        return {"parent": parent, "message": message}

    mapping = {"a": node(None, "user", "Where from?"), "b": node("a", "assistant", "Elsewhere.")}
    return {"title": title, "create_time": 1.7e9, "mapping": mapping, "current_node": "b"}


def test_a_long_list_loads_as_it_scrolls_and_shows_the_open_one(
    chat: Chat,
) -> None:
    page = chat.page
    entries = [
        {"title": f"entry {number}", "created": 1.6e9 - number, "messages": []}
        for number in range(120)
    ]
    for start in (0, 60):
        body = {"conversations": entries[start : start + 60]}
        sent = page.request.post("/api/conversations/import", data=body, headers=csrf(page))
        assert sent.ok, sent.text()
    page.goto("/")
    last = page.get_by_role("link", name="entry 119", exact=True)
    expect(chat.conversations.first).to_be_visible()
    expect(last).to_have_count(0)
    found = page.request.get("/api/conversations/search?q=entry 119").json()["results"]
    page.goto(f"/c/{found[0]['conversation']['id']}")
    expect(last).to_be_in_viewport()


def test_shortcuts_a_help_sheet_and_a_way_past_the_list(chat: Chat) -> None:
    page = chat.page
    page.locator("h1").first.click()
    page.keyboard.press("?")
    expect(page.get_by_test_id("shortcuts-dialog")).to_be_visible()
    page.keyboard.press("Escape")
    expect(page.get_by_test_id("shortcuts-dialog")).to_have_count(0)
    page.keyboard.press("/")
    expect(chat.composer).to_be_focused()
    chat.composer.press("?")
    expect(chat.composer).to_have_value("?")
    skip = page.locator("body a").first
    skip.focus()
    expect(skip).to_be_in_viewport()
    skip.press("Enter")
    expect(page.locator("main")).to_be_focused()


def test_on_a_phone(open_page: OpenPage) -> None:
    page = open_page(**PHONE)
    chat = Chat(page)
    ends(chat.choose("quick").ask("on a small screen"))
    conversation = chat.conversation()
    page.get_by_test_id("sidebar-toggle").click()
    entry = chat.entry(conversation)
    entry.get_by_test_id("conversation-menu").click()
    expect(page.get_by_test_id("menu")).to_be_in_viewport(ratio=1)
    page.get_by_test_id("menu-archive").click()
    expect(entry).to_have_count(0)
    expect(page.locator("[data-testid=section][data-key=archived]")).to_be_visible()
