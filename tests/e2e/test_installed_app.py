"""The installed app: offline reading, texts from other apps, another server's address."""

import re
from collections.abc import Callable

import httpx
from playwright.sync_api import Page, expect

from tests.e2e.browser import PHONE, Chat, ends
from tests.instance import Instance

OpenPage = Callable[..., Page]
WORKER_READY = (
    "navigator.serviceWorker.ready.then(() => navigator.serviceWorker.controller !== null)"
)


def test_conversations_are_readable_without_the_network(open_page: OpenPage) -> None:
    page = open_page("reader", expected="ERR_INTERNET_DISCONNECTED|Failed to load", **PHONE)
    page.wait_for_function(WORKER_READY)
    chat = Chat(page)
    ends(chat.ask("to be read later"))
    address = page.url
    page.reload()  # through the service worker, which keeps what it brings
    expect(chat.answers.first).to_contain_text("to be read later")

    page.context.set_offline(True)
    page.goto("/")
    expect(page.get_by_test_id("offline")).to_contain_text("offline")
    page.goto(address)
    expect(chat.questions.first).to_contain_text("to be read later")
    expect(chat.answers.first).to_contain_text("to be read later")

    page.context.set_offline(False)
    page.reload()
    expect(page.get_by_test_id("offline")).to_be_empty()


def test_leaving_forgets_what_was_read(open_page: OpenPage) -> None:
    page = open_page("reader", expected="status of 403")
    page.wait_for_function(WORKER_READY)
    page.reload()
    expect(page.get_by_test_id("composer")).to_be_visible()
    names = "caches.keys()"
    page.wait_for_function(f"{names}.then((names) => names.includes('canopy-conversations'))")
    page.evaluate("fetch('/login?token=wrong')")
    page.wait_for_function(f"{names}.then((names) => !names.includes('canopy-conversations'))")


def test_a_shared_text_becomes_a_draft(open_page: OpenPage) -> None:
    page = open_page("reader")
    page.goto("/share?title=Notes&text=read+this&url=https%3A%2F%2Fexample.org")
    expect(page.get_by_test_id("composer")).to_have_value("Notes\nread this\nhttps://example.org")
    assert page.url.endswith("/")


def test_a_server_is_chosen_by_its_address(open_page: OpenPage, echo: Instance) -> None:
    page = open_page(None, expected="ERR_CONNECTION_REFUSED|Failed to load", **PHONE)
    page.get_by_test_id("other-server").click()
    answer = page.get_by_test_id("server-answer")
    expect(answer).to_have_text(re.compile(r"^Canopy answers there, in \d+ ms\.$"))

    address = page.get_by_test_id("server-address")
    address.fill("127.0.0.1:9")  # the port of the discard service: nobody listens
    expect(answer).to_contain_text("Nothing answers there")
    expect(page.get_by_test_id("server-open")).to_be_disabled()
    address.fill("not an address")
    expect(answer).to_contain_text("not an address")

    address.fill(echo.url.replace("127.0.0.1", "localhost"))
    expect(answer).to_contain_text("Canopy answers there")
    page.get_by_test_id("server-open").click()
    page.wait_for_url(re.compile(r"^http://localhost:\d+/$"))
    page.goto(f"{echo.url}/connect")
    expect(page.get_by_test_id("server-known")).to_have_text([re.compile("localhost")])


def test_the_worker_and_its_manifest_are_served_as_browsers_want_them(echo: Instance) -> None:
    worker = httpx.get(f"{echo.url}/sw.js")
    assert worker.headers["content-type"].startswith("text/javascript")
    assert worker.headers["cache-control"] == "no-cache"
    manifest = httpx.get(f"{echo.url}/static/manifest.webmanifest").json()
    for icon in manifest["icons"]:
        picture = httpx.get(f"{echo.url}/static/{icon['src']}")
        assert picture.headers["content-type"] == icon["type"]


def test_a_reader_who_looks_elsewhere_is_told_of_a_long_answer(open_page: OpenPage) -> None:
    page = open_page("reader", permissions=["notifications"])
    page.wait_for_function(WORKER_READY)
    page.goto("/settings")
    expect(page.get_by_test_id("notifications")).to_be_checked()

    page.goto("/")
    chat = Chat(page)
    page.evaluate(
        "() => {"
        "  const now = Date.now;"
        "  Date.now = () => now() + 60_000;"  # so that the answer took long
        "  Object.defineProperty(document, 'hidden', { get: () => true });"
        "}"
    )
    ends(chat.ask("worth waiting for"))
    shown = (
        "navigator.serviceWorker.ready.then((worker) => worker.getNotifications())"
        ".then((all) => all.map((one) => one.title + ': ' + one.body).join())"
    )
    page.wait_for_function(f"{shown}.then((text) => text.includes('worth waiting for'))")
