"""Pictures of what readers see, for people to look at: desktop and phone, light and dark.

They go into the folder that SCREENSHOTS names, else into a temporary one. The tests hold each page
to what a program can see: nothing scrolls sideways, nothing lies on the composer.
"""

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import httpx
import pytest
from playwright.sync_api import Page, expect

from tests.e2e.browser import PHONE, Chat, csrf
from tests.e2e.conftest import OpenPage
from tests.e2e.stored import dialogue, store_conversations
from tests.instance import Instance, jobs, total, tree_when

pytestmark = pytest.mark.timeout(180)

SHOWCASE = (Path(__file__).parent / "showcase.md").read_text()
DIAGRAM = """The way of one request:

```mermaid
graph LR
  C[Client] --> A[API] --> R[Root] --> N[Node 1]
  N --> M[Node 2]
  M -- tokens --> A
```

And what it costs to say it again, in a table that is wider than a phone:

| Step | Queue | Confirmed | Persistent | Mandatory | p50 |
|:-----|:------|:---------:|:----------:|:---------:|----:|
| submit | canopy.jobs | yes | yes | yes | 0.9 ms |
| forward | canopy.node.n1 | yes | yes | yes | 0.7 ms |
| answer | canopy.reply.api | yes | no | yes | 0.4 ms |
"""
PROSE = (
    "A tree of workers shares its work like this: the root keeps what has to wait, in a fair "
    "order, and hands a request to the first node with a free slot. Each node runs what it can and "
    "gives the rest to its children, in turn. The words travel straight back to whoever asked, and "
    "nothing climbs up the tree. When a node dies in the middle of an answer, another one goes on "
    "from the same word."
)
TITLES = (
    "Plan a week in Lisbon",
    "Why is the sky blue?",
    "Merge two sorted lists in Python without recursion",
    "Explain Erlang's formula",
)
LOOKS: dict[str, dict[str, Any]] = {
    "desktop-light": {"viewport": {"width": 1280, "height": 800}, "color_scheme": "light"},
    "desktop-dark": {"viewport": {"width": 1280, "height": 800}, "color_scheme": "dark"},
    "phone-light": {**PHONE, "color_scheme": "light"},
    "phone-dark": {**PHONE, "color_scheme": "dark"},
}
_NEWCOMER = """
import django
django.setup()
from api.accounts import tokens
from api.accounts.models import User
print(tokens.create(User.objects.create_user("newcomer", password=None)))
"""
_FAILED = """
import sys
import django
django.setup()
from api.chat.models import Message
failed = Message.objects.filter(conversation=sys.argv[1]).latest("pk")
failed.status, failed.error_code = "failed", "engine"
failed.error = "the model failed: out of memory while it read 8,000 tokens"
failed.save()
"""
_SETTLED = """document.fonts.ready.then(() => new Promise(done => requestAnimationFrame(
  () => requestAnimationFrame(done))))"""
_SIDEWAYS = "document.scrollingElement.scrollWidth - document.scrollingElement.clientWidth"
# What lies on the middle of the field is the field.
_COVERED = """() => {
  const field = document.querySelector("[data-testid=composer]");
  if (!field || document.querySelector("dialog[open]")) return false;
  const { left, top, width, height } = field.getBoundingClientRect();
  return document.elementFromPoint(left + width / 2, top + height / 2) !== field;
}"""


class Gallery:
    """The same page in all looks, and where its pictures go."""

    def __init__(self, folder: Path, pages: dict[str, Page]) -> None:
        self._folder = folder
        self.pages = pages

    def open(self, address: str, shown: str) -> None:
        """Shows an address in all looks."""
        for page in self.pages.values():
            page.goto(address)
        for page in self.pages.values():
            page.locator(shown).first.wait_for()

    def take(self, name: str, *, drawer: bool = False) -> None:
        """One picture a look; `drawer`: something covers the page on purpose."""
        for look, page in self.pages.items():
            page.evaluate(_SETTLED)
            assert page.evaluate(_SIDEWAYS) <= 0, f"{name} {look} scrolls sideways"
            if not drawer:
                assert not page.evaluate(_COVERED), f"{name} {look}: the composer is covered"
            page.screenshot(path=self._folder / f"{name}-{look}.png", animations="disabled")

    def each(self, act: Callable[[Page], object]) -> None:
        """Does something on every page."""
        for page in self.pages.values():
            act(page)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Where the pictures go."""
    folder = Path(os.environ.get("SCREENSHOTS") or tmp_path)
    folder.mkdir(parents=True, exist_ok=True)
    print(f"\nscreenshots in {folder}")
    return folder


@pytest.fixture
def gallery(open_page: OpenPage, folder: Path) -> Gallery:
    """The pages of a reader, in all looks."""
    return Gallery(folder, {look: open_page(**options) for look, options in LOOKS.items()})


@pytest.fixture
def stored(echo: Instance) -> list[str]:
    """Conversations of the reader: formulas, a diagram, one that failed, and some more."""
    answers = [
        ("Waiting in a tree", dialogue(SHOWCASE)),
        ("The way of a request", dialogue(DIAGRAM)),
    ]
    others = [(title, dialogue(PROSE)) for title in TITLES]
    ids = store_conversations(echo, "reader", [*others, *answers, ("A long report", dialogue(""))])
    echo.python(_FAILED, ids[-1])
    return ids


def test_conversations(
    gallery: Gallery, stored: list[str], program: httpx.Client, staff: httpx.Client
) -> None:
    showcase, diagram, failed = stored[-3:]
    gallery.open("/", "[data-testid=free-slots]")
    gallery.take("empty")
    gallery.open(f"/c/{showcase}", ".katex")
    gallery.take("formulas")
    gallery.open(f"/c/{diagram}", ".diagram[data-drawn=yes]")
    gallery.take("diagram")
    gallery.open(f"/c/{failed}", "[data-testid=message-error]")
    gallery.take("error")

    first = Chat(next(iter(gallery.pages.values())))
    address = long_answers(first.page)
    with first.page.expect_response(f"**/api{address.replace('/c/', '/conversations/')}"):
        first.page.goto(address)
    first.page.evaluate(_SETTLED)
    first.ask(PROSE)
    gallery.open(address, "[data-testid=stop]")
    gallery.take("streaming")
    first.stop.click()

    with jobs(program, 8, words=5000):  # there are 6 slots
        tree_when(staff, lambda tree: total(tree, "queued") == 2)
        first.page.goto("/")
        first.ask("What is a dead letter?")
        gallery.open(f"/c/{first.conversation()}", "[data-testid=waiting]")
        gallery.take("waiting")
        first.stop.click()


def long_answers(page: Page) -> str:
    """The address of a new conversation whose answers go on for some time."""
    headers = csrf(page)
    number = page.request.post("/api/conversations", data={}, headers=headers).json()["id"]
    preferences = f"/api/conversations/{number}/preferences"
    assert page.request.put(preferences, data={"max_tokens": 2000}, headers=headers).ok
    return f"/c/{number}"


def test_around_conversations(gallery: Gallery, stored: list[str]) -> None:
    page = next(iter(gallery.pages.values()))
    for change in ({"pinned": True}, {"folder": "Work"}):
        number = stored.pop(0)
        changed = page.request.patch(
            f"/api/conversations/{number}", data=change, headers=csrf(page)
        )
        assert changed.ok
    gallery.open("/", "[data-testid=free-slots]")
    for look, each in gallery.pages.items():
        if look.startswith("phone"):
            each.get_by_test_id("sidebar-toggle").tap()
    gallery.each(lambda each: each.get_by_test_id("conversation-item").first.wait_for())
    gallery.take("sidebar", drawer=True)

    gallery.open("/", "[data-testid=composer]")
    gallery.each(lambda each: each.keyboard.press("Control+k"))
    gallery.each(lambda each: each.get_by_test_id("search-input").fill("tree"))
    gallery.each(lambda each: each.get_by_test_id("search-result").first.wait_for())
    gallery.take("search")

    shared = page.request.post(f"/api/conversations/{stored[-3]}/shares", headers=csrf(page))
    gallery.open(shared.json()["path"], "[data-testid=shared] .katex")
    gallery.take("shared")
    gallery.open("/settings", "[data-testid=usage]")
    gallery.take("settings")
    gallery.open("/connect", "[data-testid=server-address]")
    gallery.take("connect")


def test_the_first_login(open_page: OpenPage, folder: Path, echo: Instance) -> None:
    # in contexts of their own: a login ends the session that a context has
    pages = {
        look: open_page(None, expected="status of 401", **options)
        for look, options in LOOKS.items()
    }
    page = next(iter(pages.values()))
    page.goto(f"/login?token={echo.python(_NEWCOMER).strip()}")
    expect(page).to_have_url(f"{echo.url}/welcome")
    session: Any = page.context.cookies()
    newcomer = Gallery(folder, pages)
    newcomer.each(lambda each: each.context.add_cookies(session))
    newcomer.open("/welcome", "[data-testid=welcome-name]")
    newcomer.take("welcome")
