"""The dashboard in a real browser: the tree as it is, as it changes, as it is changed."""

import re

import httpx
import pytest
from playwright.sync_api import Locator, Page, expect

from tests.e2e.conftest import OpenPage
from tests.instance import Instance, Tree, at_rest, jobs, total, tree_when

pytestmark = pytest.mark.timeout(90)
NODES = ["root", "n1", "n2", "n3"]


@pytest.fixture
def dashboard(open_page: OpenPage, staff: httpx.Client) -> Page:
    """The dashboard as staff sees it, of a tree at rest."""
    tree_when(staff, lambda tree: at_rest(tree) and serving(tree) == set(NODES))
    page = open_page("operator")
    page.goto("/tree/")
    expect(page.get_by_test_id("connection")).to_have_attribute("data-state", "live")
    return page


def serving(tree: Tree) -> set[str]:
    """Who lives; roots of former tests stay known, as down."""
    return {node["name"] for node in tree["nodes"] if node["state"] != "down"}


def card(page: Page, name: str) -> Locator:
    """A node on the dashboard."""
    return page.locator(f"[data-testid=tree-node][data-name='{name}']")


def expect_state(page: Page, name: str, state: str) -> None:
    expect(card(page, name)).to_have_attribute("data-state", state)


def test_staff_see_the_root_and_every_node_with_its_state(dashboard: Page) -> None:
    for name in NODES:
        expect_state(dashboard, name, "idle")
    expect(card(dashboard, "root")).to_contain_text("Entrance")
    expect(card(dashboard, "n2")).to_contain_text("0/2")
    expect(card(dashboard, "n2")).to_contain_text("echo")

    card(dashboard, "n1").get_by_role("button", name="n1", exact=True).click()
    details = dashboard.get_by_test_id("node-details")
    expect(details.get_by_role("button", name="root")).to_be_visible()
    expect(details.get_by_role("button", name="n2")).to_be_visible()
    expect(details.get_by_role("button", name="n3")).to_be_visible()


def test_a_node_appears_when_it_starts_and_disappears_when_it_ends(
    dashboard: Page, echo: Instance
) -> None:
    expect(card(dashboard, "n2")).to_be_visible()
    with echo.child("node", "n9", "--parent", "n2", "--engine", "echo", "--slots", "1"):
        expect_state(dashboard, "n9", "idle")
        expect(card(dashboard, "n9")).to_contain_text("0/1")
    expect(card(dashboard, "n9")).to_have_count(0)
    expect_state(dashboard, "n2", "idle")


def test_load_is_seen_and_seen_to_go(dashboard: Page, program: httpx.Client) -> None:
    totals = dashboard.get_by_test_id("totals")
    with jobs(program, 10, words=1000):
        for name in ("n1", "n2", "n3"):
            expect(card(dashboard, name)).to_contain_text("2/2")
            expect_state(dashboard, name, "busy")
        expect(totals.locator("div", has_text="Running")).to_contain_text("6 100 %")
        expect(totals.locator("div", has_text="Queued")).to_contain_text("4")
    for name in ("n1", "n2", "n3"):
        expect(card(dashboard, name)).to_contain_text("0/2")
        expect_state(dashboard, name, "idle")
    expect(totals.locator("div", has_text="Queued")).to_contain_text("0")


def test_how_long_jobs_waited_is_told_where_they_did(
    dashboard: Page, program: httpx.Client, staff: httpx.Client
) -> None:
    with jobs(
        program, 24, words=20
    ):  # four times as many as run at once; estimates come with the first that end
        tree_when(
            staff,
            lambda tree: any(
                node["name"] == "root" and node["waited"] > 0 for node in tree["nodes"]
            ),
        )
    card(dashboard, "root").get_by_role("button", name="root", exact=True).click()
    expect(dashboard.get_by_test_id("node-details")).to_contain_text(
        re.compile(r"Waits\s*[\d.]+ s on average, estimates off by [\d.]+ s")
    )


def test_a_drained_node_gets_nothing_until_it_is_resumed(
    dashboard: Page, program: httpx.Client, staff: httpx.Client
) -> None:
    with jobs(program, 6, words=1000):
        tree_when(staff, lambda tree: total(tree, "running") == 6)
        card(dashboard, "n3").get_by_test_id("drain").click()
        expect_state(dashboard, "n3", "draining")
        expect(card(dashboard, "n3")).to_contain_text("2/2")  # what runs there is finished, not cut
    expect_state(dashboard, "n3", "drained")

    with jobs(program, 6, words=1000):
        expect(card(dashboard, "n1")).to_contain_text("2/2")
        expect(card(dashboard, "n2")).to_contain_text("2/2")
        tree_when(staff, lambda tree: total(tree, "running") == 4 and total(tree, "queued") == 2)
        expect(card(dashboard, "n3")).to_contain_text("0/2")
        card(dashboard, "n3").get_by_test_id("resume").click()
        expect(card(dashboard, "n3")).to_have_attribute("data-state", re.compile("idle|busy"))
    tree_when(staff, at_rest)
    with jobs(program, 6, words=1000):
        expect(card(dashboard, "n3")).to_contain_text("2/2")


def test_on_a_phone_the_tree_is_a_list(open_page: OpenPage) -> None:
    page = open_page("operator", viewport={"width": 390, "height": 844})
    page.goto("/tree/")
    for name in NODES:
        expect(card(page, name)).to_be_visible()
    assert page.evaluate(
        "document.scrollingElement.scrollWidth <= document.scrollingElement.clientWidth"
    )


def test_others_are_told_that_it_is_for_staff(open_page: OpenPage) -> None:
    page = open_page("reader")
    page.goto("/tree/")
    expect(page.get_by_text("Only staff can see the tree of nodes.")).to_be_visible()
    expect(page.get_by_test_id("tree-node")).to_have_count(0)
    for path in ("/api/tree", "/api/tree/stream"):
        assert page.request.get(path).status == 403


def test_nobody_gets_the_login_page(open_page: OpenPage) -> None:
    page = open_page(None)
    page.goto("/tree/")
    expect(page.get_by_test_id("login-username")).to_be_visible()
    assert page.request.get("/api/tree").status == 401
