"""Drills: a node with streaming jobs is killed from the page, and from the command line.

What is counted is compared with what the clients themselves received.
"""

import json
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager

import httpx
import pytest
from playwright.sync_api import Locator, Page, expect

from tests.e2e.browser import echoes, words
from tests.e2e.conftest import OpenPage
from tests.e2e.frames import QUIET, SpareTime
from tests.e2e.test_accessible import violations, with_axe
from tests.e2e.test_node_actions import delta_of
from tests.instance import WAIT_SECONDS, Instance, Tree, at_rest, total, tree_when

pytestmark = pytest.mark.timeout(180)

QUESTION = words(40)
WORDS = 20_000  # more than a quarter of an hour: the clients leave when the drill is over
JOBS = 4  # of six slots: those of two nodes, so that all go on when one node is away


class Received:
    """One client's stream: its words, and the longest time in which none came (seconds)."""

    def __init__(self, words: list[str], gap: float) -> None:
        self.words = words
        self.gap = gap


class Clients:
    """Those that read while the test does something else, until they are told to leave."""

    def __init__(self, pool: ThreadPoolExecutor, program: httpx.Client) -> None:
        self._over = threading.Event()
        self._spare = SpareTime()
        self._answers = [pool.submit(receive, program, self._over) for _ in range(JOBS)]

    def leave(self) -> None:
        """They stop reading."""
        self._over.set()

    def check(self, drill: dict[str, object]) -> None:
        """Nothing is lost for them, and the slowest of them waited as long as was counted."""
        self.leave()
        received = [answer.result(timeout=WAIT_SECONDS) for answer in self._answers]
        for each in received:
            assert echoes(" ".join(each.words), QUESTION), each.words
        assert (drill["affected"], drill["moved"], drill["lost"], drill["open"]) == (2, 2, 0, 0)
        longest = max(each.gap for each in received)
        # a client's pause began with the token before the kill, and it may be slow itself
        difference = longest - float(str(drill["slowest"]))
        assert -0.2 < difference < 1.0 or self._spare.share() < QUIET
        assert 0.5 < float(str(drill["back"])) < 60  # it is started after a second


def receive(program: httpx.Client, over: threading.Event) -> Received:
    """Reads a streamed answer until it is `over`."""
    body = {
        "model": "echo",
        "stream": True,
        "max_tokens": WORDS,
        "messages": [{"role": "user", "content": QUESTION}],
    }
    text, gap, last = "", 0.0, None
    with program.stream("POST", "/v1/chat/completions", json=body) as answer:
        for line in answer.iter_lines():
            assert '"error"' not in line, line
            delta = delta_of(line)
            if delta:
                now = time.monotonic()
                gap = max(gap, now - (last or now))
                text, last = text + delta, now
            if over.is_set():
                break
    return Received(text.split(), gap)


@contextmanager
def streaming(program: httpx.Client, staff: httpx.Client) -> Iterator[Clients]:
    """All of them are answered."""
    tree_when(staff, at_rest)
    with ThreadPoolExecutor(JOBS) as pool:
        clients = Clients(pool, program)
        try:
            tree_when(staff, lambda tree: total(tree, "running") == JOBS)
            yield clients
        finally:
            clients.leave()


def running_on(staff: httpx.Client, name: str) -> int:
    line = staff.get("/api/operate/line", params={"limit": 100}).json()
    return sum(job["trail"][-1] == name for job in line["running"])


def a_busy_node(staff: httpx.Client) -> str:
    """One that runs two jobs."""
    tree: Tree = staff.get("/api/tree").json()
    busy = [node["name"] for node in tree["nodes"] if node["running"] == 2 and node["parent"]]
    return str(busy[-1])


@pytest.fixture
def administrator(open_page: OpenPage, echo: Instance) -> Page:
    page = with_axe(open_page(None, expected="status of 404"))
    page.goto(f"/login?token={echo.login_token()}")
    page.goto("/tree/drills")
    return page


def newest(page: Page) -> Locator:
    return page.get_by_test_id("drill").first


def test_a_node_is_killed_from_the_page_and_no_client_notices(
    administrator: Page, echo: Instance, program: httpx.Client, staff: httpx.Client
) -> None:
    page = administrator
    with streaming(program, staff) as clients:
        name = a_busy_node(staff)
        assert running_on(staff, name) == 2
        page.get_by_test_id("drill-node").select_option(name)
        page.get_by_test_id("drill-start").click()
        expect(page.get_by_test_id("drill-plan")).to_contain_text("2 jobs run there now")
        page.get_by_test_id("drill-confirm").click()
        expect(page.get_by_test_id("drill-dialog")).to_have_count(0)
        expect(newest(page)).to_have_attribute("data-node", name)
        expect(newest(page)).to_have_attribute("data-state", "done")
        expect(newest(page).get_by_test_id("drill-moved")).to_have_text("2")
        [drill, *_] = staff.get("/api/operate/drills").json()["drills"]
        clients.check(drill)
    entries = staff.get("/api/operate/audit", params={"action": "drill"}).json()["entries"]
    assert entries[0]["target"] == name
    assert entries[0]["result"].startswith("2 jobs affected, 2 moved")
    assert violations(page) == []
    page.get_by_test_id("drill-start").click()
    page.get_by_test_id("drill-plan").wait_for()
    assert violations(page) == []


def test_the_command_line_counts_the_requests_of_the_api_process(
    echo: Instance, program: httpx.Client, staff: httpx.Client
) -> None:
    """Two processes: one conducts, the other reads the requests."""
    with streaming(program, staff) as clients:
        name = a_busy_node(staff)
        drill = json.loads(echo.canopy("drill", name, "--json"))
        clients.check(drill)
    assert drill["processes"] == 2
    assert drill["by"].endswith(" via command line")
    listed = json.loads(echo.canopy("drill", "--json"))["drills"]
    assert listed[0] == drill
    tree_when(staff, at_rest)
    plan = json.loads(echo.canopy("drill", name, "--preview", "--json"))
    assert (plan["host"], plan["refusal"], plan["running_count"]) == (drill["host"], "", 0)


def test_staff_who_are_no_administrators_only_look(open_page: OpenPage) -> None:
    page = open_page("operator")
    page.goto("/tree/drills")
    expect(page.get_by_test_id("drill-refused")).to_be_visible()
    expect(page.get_by_test_id("drill-start")).to_have_count(0)
