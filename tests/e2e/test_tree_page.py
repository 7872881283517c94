"""The dashboard in a real browser: the tree as it is, as it changes, as it is changed."""

import os
import re
import signal
import time

import httpx
import pytest
from playwright.sync_api import Locator, Page, expect

from cli import processes
from cli.home import Home
from tests.e2e.conftest import OpenPage
from tests.instance import Instance, Tree, at_rest, jobs, total, tree_when
from tests.realbroker import NodeProcess

pytestmark = pytest.mark.timeout(170)
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


def test_a_frozen_node_is_told_from_an_idle_one(dashboard: Page, echo: Instance) -> None:
    options = ("--engine", "echo", "--parent", "n2", "--model", "echo", "--slots", "1")
    with NodeProcess(echo.broker, "n9", *options) as node:
        expect_state(dashboard, "n9", "idle")
        node.process.send_signal(signal.SIGSTOP)
        try:
            expect_state(dashboard, "n9", "frozen")
        finally:
            node.process.send_signal(signal.SIGCONT)
    expect(card(dashboard, "n9")).to_have_count(0)


def test_load_is_seen_and_seen_to_go(dashboard: Page, program: httpx.Client) -> None:
    totals = dashboard.get_by_test_id("totals")
    with jobs(program, 10, words=1000):
        for name in ("n1", "n2", "n3"):
            expect(card(dashboard, name)).to_contain_text("2/2")
            expect_state(dashboard, name, "busy")
        expect(totals.get_by_test_id("total-running")).to_contain_text("6")
        expect(totals.get_by_test_id("total-usable")).to_contain_text("100 % 6 of 6")
        expect(totals.get_by_test_id("total-waiting")).to_contain_text("4")
        # at most twenty words a second and slot; fewer on a busy machine, more in one interval
        tokens = totals.get_by_test_id("total-tokens").locator(".value")
        expect(tokens).to_have_text(re.compile(r"^([1-9]\d?|1\d\d)$"))
        expect_state(dashboard, "root", "holding")
    for name in ("n1", "n2", "n3"):
        expect(card(dashboard, name)).to_contain_text("0/2")
        expect_state(dashboard, name, "idle")
    expect(totals.get_by_test_id("total-waiting")).to_contain_text("0")
    expect_state(dashboard, "root", "idle")


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
        dashboard.get_by_test_id("action-confirm").click()
        expect_state(dashboard, "n3", "draining")
        expect(card(dashboard, "n3")).to_contain_text("2/2")  # what runs there is finished, not cut
    expect_state(dashboard, "n3", "drained")

    with jobs(program, 6, words=1000):
        expect(card(dashboard, "n1")).to_contain_text("2/2")
        expect(card(dashboard, "n2")).to_contain_text("2/2")
        tree_when(staff, lambda tree: total(tree, "running") == 4 and total(tree, "queued") == 2)
        expect(card(dashboard, "n3")).to_contain_text("0/2")
        card(dashboard, "n3").get_by_test_id("resume").click()
        dashboard.get_by_test_id("action-confirm").click()
        expect(card(dashboard, "n3")).to_have_attribute("data-state", re.compile("idle|busy"))
    tree_when(staff, at_rest)
    with jobs(program, 6, words=1000):
        expect(card(dashboard, "n3")).to_contain_text("2/2")


def test_a_tree_that_waits_while_nothing_can_run_is_red_until_it_is_mended(
    dashboard: Page, program: httpx.Client, staff: httpx.Client
) -> None:
    """Flooded, and everything below the root drained: it said "Idle"."""
    assert staff.post("/api/tree/nodes/n1/drain").status_code == 202
    expect_state(dashboard, "n1", "drained")
    for name in ("n2", "n3"):
        expect_state(dashboard, name, "below_draining")
    asked_at = time.monotonic()
    with jobs(program, 5, words=1000):  # they still run when the page has shown that they do
        # of the tree that all tests share: other files' trees are gone, and have alerts, too
        alert = dashboard.locator("[data-testid=tree-alert][data-root=root]")
        expect(alert).to_have_attribute("data-state", "stuck")
        expect(alert).to_contain_text("echo: 5 waiting, and none can start. Drained: n1.")
        totals = dashboard.get_by_test_id("totals")
        expect(totals.get_by_test_id("total-usable")).to_contain_text("none usable")
        trees = staff.get("/api/tree").json()["summary"]["trees"]
        [seen] = [tree for tree in trees if tree["root"] == "root"]
        assert (seen["waiting"], seen["running"], seen["usable"]) == (5, 0, 0)
        expect(totals.get_by_test_id("total-waiting")).to_contain_text("5")
        assert 0 < seen["oldest_wait"] <= time.monotonic() - asked_at + 0.1
        expect(totals.get_by_test_id("total-oldest")).to_contain_text(re.compile(r"[1-9][\d.]* s"))
        alert.get_by_test_id("mend").click()
        effect = dashboard.get_by_test_id("action-effect")
        expect(effect).to_contain_text("n1 and 2 nodes below it get jobs again")
        expect(alert).to_have_count(1)  # nothing has happened yet
        dashboard.get_by_test_id("action-confirm").click()
        expect(alert).to_have_count(0)
        tree_when(staff, lambda tree: total(tree, "running") == 5)
    expect_state(dashboard, "n2", "idle")


def test_the_table_is_sorted_and_filtered(dashboard: Page) -> None:
    dashboard.get_by_test_id("view-table").click()
    rows = dashboard.locator("[data-testid=node-table] tbody tr")
    echo = dashboard.locator("[data-testid=node-table] tbody tr:is([data-row=n1], [data-row=n3])")
    expect(echo.first).to_have_attribute("data-row", "n1")
    dashboard.get_by_test_id("sort-name").click()
    expect(echo.first).to_have_attribute("data-row", "n3")
    dashboard.get_by_test_id("node-search").fill("n3")
    expect(rows).to_have_count(1)
    dashboard.get_by_test_id("node-search").fill("nothing of the kind")
    expect(rows).to_contain_text("No node matches.")


def test_the_keyboard_goes_from_node_to_node(dashboard: Page) -> None:
    dashboard.get_by_test_id("node-search").fill("root")
    dashboard.get_by_test_id("node-search").press("Enter")
    for key, name in (("ArrowDown", "n1"), ("ArrowDown", "n2"), ("ArrowRight", "n3")):
        dashboard.keyboard.press(key)
        expect(card(dashboard, name).locator("[data-select]")).to_be_focused()
    dashboard.keyboard.press("Enter")
    expect(dashboard.get_by_test_id("node-details")).to_be_visible()
    dashboard.keyboard.press("Escape")
    expect(dashboard.get_by_test_id("node-details")).to_have_count(0)
    dashboard.keyboard.press("ArrowUp")
    dashboard.keyboard.press("c")
    expect(card(dashboard, "n3")).to_have_count(0)
    dashboard.keyboard.press("c")
    expect(card(dashboard, "n3")).to_be_visible()


def test_jobs_are_seen_to_move(dashboard: Page, program: httpx.Client) -> None:
    drawn = """() => {
      const canvas = document.querySelector("[data-testid=job-flow]");
      const pixels = canvas.getContext("2d").getImageData(0, 0, canvas.width, canvas.height).data;
      return pixels.some(value => value > 0);
    }"""
    dashboard.get_by_test_id("job-flow").wait_for(state="attached")
    dashboard.wait_for_function(f"() => !({drawn})()")  # of the former test's jobs, too
    # the page itself looks, at every frame: dots are gone after a second
    dashboard.evaluate(f"""() => {{
      const drawn = {drawn};
      window.jobsSeen = false;
      const look = () => (window.jobsSeen = drawn()) || requestAnimationFrame(look);
      look();
    }}""")
    with jobs(program, 6, words=20):
        dashboard.wait_for_function("() => window.jobsSeen")
    dashboard.wait_for_function(f"() => !({drawn})()")


def test_a_broken_stream_is_told_and_mended(open_page: OpenPage, echo: Instance) -> None:
    page = open_page("operator", expected="ERR_|status of 50")
    page.goto("/tree/")
    expect(page.get_by_test_id("connection")).to_have_attribute("data-state", "live")
    page.evaluate("""() => {
      window.seen = [];
      const state = document.querySelector("[data-testid=connection]");
      const note = () => window.seen.push([state.dataset.state, document.body.innerText]);
      new MutationObserver(note).observe(state, { attributes: true });
    }""")
    [api] = [record for record in processes.read(Home(echo.home)) if record.name == "api"]
    os.kill(api.pid, signal.SIGKILL)  # it is started again
    page.wait_for_function("() => window.seen.some(([state]) => state === 'live')")
    states = page.evaluate("() => window.seen.map(([state]) => state)")
    assert states[0] == "reconnecting"
    assert "The live connection broke" in page.evaluate("() => window.seen[0][1]")
    expect(page.get_by_text("The live connection broke")).to_have_count(0)


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
