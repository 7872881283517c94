"""Trees of many nodes: they can be read, are fluid, and show a change at once."""

import os
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from playwright.sync_api import Page, expect

from tests import puppets
from tests.e2e.browser import PHONE
from tests.e2e.conftest import OpenPage
from tests.e2e.frames import QUIET, SpareTime
from tests.instance import Instance

pytestmark = pytest.mark.timeout(180)

WINDOW = {"width": 1440, "height": 900}
SMALLEST_LETTERS = 9  # CSS pixels
SHOTS = os.environ.get("SCREENSHOTS")  # a folder for pictures of the pages

# The gaps between frames, in milliseconds, of two seconds in which the tree changes.
_FRAMES = """() => new Promise(done => {
  const gaps = [];
  let last = performance.now();
  const end = last + 2000;
  const frame = now => {
    gaps.push(now - last);
    last = now;
    if (now < end) requestAnimationFrame(frame); else done(gaps.sort((a, b) => a - b));
  };
  requestAnimationFrame(frame);
})"""
_DRAIN = """name => new Promise(async done => {
  const card = document.querySelector(`[data-testid=tree-node][data-name='${name}']`);
  const token = document.cookie.match(/csrftoken=([^;]+)/)[1];
  let asked = 0;
  new MutationObserver(() => {
    if (card.dataset.state === "drained") done(performance.now() - asked);
  }).observe(card, { attributes: true });
  asked = performance.now();
  const headers = { "X-CSRFToken": token };
  await fetch(`/api/tree/nodes/${name}/drain`, { method: "POST", headers });
})"""
_RESUME = """name => fetch(`/api/tree/nodes/${name}/resume`, {
  method: "POST",
  headers: { "X-CSRFToken": document.cookie.match(/csrftoken=([^;]+)/)[1] },
})"""


@pytest.fixture(scope="module", params=[40, 200])
def nodes(request: pytest.FixtureRequest, echo: Instance) -> Iterator[int]:
    """So many nodes beside those of the instance."""
    with puppets.playing(echo.broker, request.param, 3):
        yield int(request.param)


def test_many_nodes_are_readable_fluid_and_up_to_date(nodes: int, open_page: OpenPage) -> None:
    page = open_page("operator", viewport=WINDOW)
    page.goto("/tree/")
    cards = page.get_by_test_id("tree-node")
    last = page.locator(f"[data-testid=tree-node][data-name='w{nodes - 1}']")
    expect(last).to_be_attached()
    assert cards.count() >= nodes
    letters = last.locator(".name").evaluate(
        "node => parseFloat(getComputedStyle(node).fontSize) * node.getBoundingClientRect().width "
        "/ node.offsetWidth"
    )
    assert letters >= SMALLEST_LETTERS
    spare = SpareTime()
    gaps = page.evaluate(_FRAMES)
    drained = page.evaluate(_DRAIN, "w5")
    if spare.share() > QUIET:
        assert gaps[int(0.95 * len(gaps))] < 150, gaps[-5:]
        assert drained < 500
    assert drained < 5000, "not even on a machine that does all the rest, too"
    below = page.locator("[data-testid=tree-node][data-name='w16']")
    expect(below).to_have_attribute("data-state", "below_draining")
    page.evaluate(_RESUME, "w5")
    if SHOTS:
        take_pictures(open_page, nodes)


def test_a_subtree_is_found_hidden_and_shown(nodes: int, open_page: OpenPage) -> None:
    page = open_page("operator", viewport=WINDOW)
    page.goto("/tree/")
    name = f"w{nodes - 1}"
    node = page.locator(f"[data-testid=tree-node][data-name='{name}']")
    expect(node).to_be_attached()
    page.get_by_test_id("node-search").fill(name)
    page.get_by_test_id("node-search").press("Enter")
    expect(node.locator("[data-select]")).to_be_focused()
    expect(node).to_be_in_viewport()
    page.get_by_test_id("node-search").fill("")
    page.locator("[data-testid=tree-node][data-name='w1']").hover()
    page.locator("[data-testid=branching][data-name='w1']").click()
    expect(page.locator("[data-testid=tree-node][data-name='w4']")).to_have_count(0)
    page.locator("[data-testid=branching][data-name='w1']").click()
    expect(page.locator("[data-testid=tree-node][data-name='w4']")).to_have_count(1)


def take_pictures(open_page: OpenPage, nodes: int) -> None:
    """Of the pages, for people."""
    for theme in ("light", "dark"):
        for device, options in (("desktop", {"viewport": WINDOW}), ("phone", PHONE)):
            page = open_page("operator", color_scheme=theme, **options)
            for path in ("tree/", "tree/queues"):
                page.goto(f"/{path}")
                page.locator("[data-testid=tree-node], [data-row]").first.wait_for()
                time.sleep(3)  # for figures that take a while to grow
                shot(page, f"{path.strip('/').replace('/', '-')}-{nodes}-{device}-{theme}")


def shot(page: Page, name: str) -> None:
    """A picture of the page, if somebody wants it."""
    if SHOTS:
        page.screenshot(path=Path(SHOTS) / f"{name}.png")
