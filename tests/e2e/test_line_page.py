"""The line in a real browser: what waits and runs, what operators do with it, and what is recorded.

Every effect is checked at the nodes or in the database, not on the page alone.
"""

import json
import os
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
from playwright.sync_api import Page, Route, expect

from tests.e2e.browser import close_dialog
from tests.e2e.conftest import OpenPage
from tests.e2e.test_accessible import violations, with_axe
from tests.e2e.test_screenshots import LOOKS, Gallery
from tests.instance import Instance, at_rest, jobs, total, tree_when

pytestmark = pytest.mark.timeout(175)

SLOTS = 6  # of the shared tree
JOBS = 15


@pytest.fixture
def flooded(staff: httpx.Client, program: httpx.Client) -> Iterator[list[httpx.Response]]:
    """Every slot is taken, and nine jobs wait. The answers being streamed, in their order."""
    tree_when(staff, at_rest)
    with jobs(program, JOBS, words=4000) as streams:
        tree_when(staff, lambda tree: total(tree, "queued") == JOBS - SLOTS)
        yield streams
    tree_when(staff, at_rest)


@pytest.fixture
def line(open_page: OpenPage, flooded: list[httpx.Response]) -> Page:
    """The line of a flooded tree, as staff see it."""
    page = with_axe(open_page("operator"))
    page.goto("/tree/line")
    expect(page.get_by_test_id("waiting-count")).to_have_text(str(JOBS - SLOTS))
    return page


def waiting(staff: httpx.Client) -> list[str]:
    """The jobs at the root in their order, as the root itself says it."""
    seen = staff.get("/api/operate/line").json()
    return [row["request_id"] for row in seen["waiting"]]


def entries(staff: httpx.Client, action: str) -> list[dict[str, Any]]:
    """What the log has of an action, newest first."""
    answer = staff.get("/api/operate/audit", params={"action": action})
    shown: list[dict[str, Any]] = answer.json()["entries"]
    return shown


def record_something(staff: httpx.Client) -> None:
    """An entry for the audit log: a look at a prompt that is refused."""
    assert staff.post("/api/operate/line/jobs/none/prompt").status_code == 403


def open_job(page: Page, request_id: str) -> None:
    """By the keyboard: the Tab key leads into the list, Enter opens."""
    page.locator(f"[data-row='{request_id}'] button").focus()
    page.keyboard.press("Enter")
    expect(page.get_by_test_id("job-dialog")).to_contain_text(request_id)


def choose(page: Page, action: str) -> None:
    """An action of the open job, with the keyboard alone."""
    page.get_by_test_id(f"job-{action}").focus()
    page.keyboard.press("Enter")
    expect(page.get_by_test_id("job-says")).to_be_visible()
    expect(page.get_by_test_id("job-back")).to_be_focused()
    page.keyboard.press("Tab")
    page.keyboard.press("Enter")
    expect(page.get_by_test_id("job-dialog")).to_have_count(0)


def ids(page: Page, testid: str) -> list[str]:
    """The jobs that a list shows, from above."""
    rows = page.get_by_test_id(testid).locator("[data-row]").all()
    return [row.get_attribute("data-row") or "" for row in rows]


def test_the_numbers_are_those_of_the_nodes_and_the_broker(line: Page, staff: httpx.Client) -> None:
    tree = tree_when(staff, lambda tree: total(tree, "running") == SLOTS)
    root = next(node for node in tree["nodes"] if node["name"] == "root")
    assert root["held"] + root["depth"] == JOBS - SLOTS
    expect(line.get_by_test_id("running-count")).to_have_text(str(total(tree, "running")))
    expect(line.get_by_test_id("waiting-count")).to_have_text(str(root["held"]))
    assert ids(line, "waiting-jobs") == waiting(staff)
    expect(line.locator("[data-model=echo]")).to_contain_text("6 running, 9 waiting (0 batch)")

    running = staff.get("/api/operate/line").json()["running"]
    trails = {row["request_id"]: " › ".join(row["trail"]) for row in running}
    assert (
        sorted(trails.values())
        == ["root › n1"] * 2 + ["root › n1 › n2"] * 2 + ["root › n1 › n3"] * 2
    )
    for request_id, trail in trails.items():
        expect(line.locator(f"[data-row='{request_id}'] [data-column=node]")).to_have_text(trail)
    first = line.locator("[data-column=tokens]").first
    before = int(first.inner_text())
    expect(first).not_to_have_text(str(before))  # it goes on


def test_a_job_is_found_by_its_id_and_its_user(line: Page, staff: httpx.Client) -> None:
    sought = waiting(staff)[4]
    line.get_by_test_id("line-search").fill(sought[:10])
    expect(line.get_by_test_id("waiting-jobs").locator("[data-row]")).to_have_count(1)
    assert ids(line, "waiting-jobs") == [sought]
    line.get_by_test_id("line-search").fill("nobody")
    expect(line.get_by_test_id("line-section")).to_contain_text("No job waits that fits.")
    line.get_by_test_id("line-search").fill("admin")
    expect(line.get_by_test_id("waiting-jobs").locator("[data-row]")).to_have_count(9)
    line.get_by_test_id("line-class").select_option("batch")
    expect(line.get_by_test_id("waiting-jobs").locator("[data-row]")).to_have_count(0)


def test_an_operator_changes_the_order_with_the_keyboard_alone(
    line: Page, staff: httpx.Client
) -> None:
    order = waiting(staff)
    line.locator(f"[data-row='{order[0]}'] button").focus()
    for _ in range(4):
        line.keyboard.press("ArrowDown")
    expect(line.locator(f"[data-row='{order[4]}'] button")).to_be_focused()
    open_job(line, order[4])
    choose(line, "front")
    expect(line.get_by_test_id("waiting-jobs").locator("[data-row]").first).to_have_attribute(
        "data-row", order[4]
    )
    assert waiting(staff) == [order[4], *order[:4], *order[5:]]
    assert entries(staff, "move job up")[0]["target"] == order[4]

    open_job(line, order[0])
    choose(line, "class")
    row = line.locator(f"[data-row='{order[0]}'] [data-column=class]")
    expect(row).to_have_text("batch")
    assert waiting(staff)[-1] == order[0]
    open_job(line, order[0])
    choose(line, "first")
    expect(row).to_have_text("interactive")
    assert waiting(staff)[0] == order[0]


def test_a_cancelled_job_leaves_the_line_and_its_reader_hears_why(
    line: Page, staff: httpx.Client, flooded: list[httpx.Response]
) -> None:
    waits = waiting(staff)[3]
    runs = staff.get("/api/operate/line").json()["running"][0]["request_id"]
    for request_id in (waits, runs):
        open_job(line, request_id)
        choose(line, "cancel")
        expect(line.locator(f"[data-row='{request_id}']")).to_have_count(0)
        assert entries(staff, "cancel job")[0]["target"] == request_id
        [stream] = [each for each in flooded if each.headers["X-Request-Id"] == request_id]
        assert "an operator cancelled this request" in stream.read().decode()
    assert runs not in [
        row["request_id"] for row in staff.get("/api/operate/line").json()["running"]
    ]
    expect(line.get_by_test_id("running-count")).to_have_text(str(SLOTS))  # the slot was taken
    expect(line.get_by_test_id("waiting-count")).to_have_text(str(JOBS - SLOTS - 2))


def test_a_paused_model_refuses_until_it_is_resumed(
    line: Page, open_page: OpenPage, program: httpx.Client, staff: httpx.Client, echo: Instance
) -> None:
    intake = line.locator("[data-model=echo]").get_by_test_id("intake")
    intake.click()
    expect(line.get_by_test_id("intake-dialog")).to_contain_text("The 9 that wait")
    line.get_by_test_id("intake-reason").fill("an upgrade until noon")
    line.get_by_test_id("intake-confirm").click()
    model = line.locator("[data-model=echo]")
    try:
        expect(model).to_contain_text("takes no new requests: an upgrade until noon")
        body = {"model": "echo", "messages": [{"role": "user", "content": "hello"}]}
        refused = program.post("/v1/chat/completions", json=body)
        assert (refused.status_code, refused.json()["error"]["code"]) == (503, "model_paused")
        assert json.loads(echo.canopy("model", "paused", "--json"))["paused"] == [
            {"model": "echo", "reason": "an upgrade until noon"}
        ]
        assert len(waiting(staff)) == JOBS - SLOTS
        reader = open_page("reader")
        options = reader.get_by_test_id("model-select").locator("option")
        expect(options.first).to_contain_text("takes no new messages now: an upgrade until noon")
    finally:
        intake.click()
        line.get_by_test_id("intake-confirm").click()
        expect(model).not_to_contain_text("takes no new requests")
    assert [entry["action"] for entry in entries(staff, "")[:2]] == ["resume model", "pause model"]


def test_prompts_are_seen_only_if_an_administrator_allows_it(
    line: Page, staff: httpx.Client, echo: Instance
) -> None:
    request_id = waiting(staff)[0]
    open_job(line, request_id)
    expect(line.get_by_test_id("job-prompt")).to_have_count(0)
    line.keyboard.press("Escape")
    expect(line.get_by_test_id("prompt-access")).to_have_count(0)  # no administrator
    assert staff.post(f"/api/operate/line/jobs/{request_id}/prompt").status_code == 403
    allowed = json.loads(echo.canopy("jobs", "prompts", "yes", "--json"))
    try:
        assert allowed == {"allowed": True}
        line.reload()
        open_job(line, request_id)
        line.get_by_test_id("job-prompt").click()
        expect(line.get_by_test_id("prompt")).to_have_text("user:\nagain")
        assert violations(line) == []
        looks = entries(staff, "look at prompt")
        assert [look["result"] == "done" for look in looks[:2]] == [True, False]
        assert looks[0]["who"] == "operator"
    finally:
        echo.canopy("jobs", "prompts", "no")


def test_a_thousand_waiting_jobs_stay_fluid(open_page: OpenPage) -> None:
    """Only what is seen is drawn. The line is made up here: what is tested is the page."""
    rows = [
        {
            "request_id": f"job{number:05}",
            "user": "ada",
            "job_class": "interactive",
            "model": "echo",
            "node": "root",
            "position": number,
            "age": 1.0,
            "starts_in": None,
            "reason": "busy",
            "attempt": 1,
            "restarted": False,
        }
        for number in range(1, 1001)
    ]
    model = {
        "model": "echo",
        "waiting": 1000,
        "batch": 0,
        "running": 0,
        "paused": False,
        "pause_reason": "",
    }
    made_up = {"at": 0, "models": [model], "waiting": rows, "running": [], "complete": True}

    def answer(route: Route) -> None:
        body = f"event: line\ndata: {json.dumps(made_up)}\n\n"
        route.fulfill(body=body, headers={"Content-Type": "text/event-stream"})

    page = open_page("operator")
    page.route("**/api/operate/line/stream", answer)
    page.goto("/tree/line")
    table = page.get_by_test_id("waiting-jobs")
    expect(table).to_have_attribute("aria-rowcount", "1001")
    expect(table.locator("[data-row=job00001]")).to_be_visible()
    assert table.locator("[data-row]").count() < 60
    table.locator("[data-row=job00001] button").focus()
    page.keyboard.press("End")
    expect(table.locator("[data-row=job01000] button")).to_be_focused()
    assert table.locator("[data-row]").count() < 60


def test_the_audit_log_is_read_and_filtered(line: Page, staff: httpx.Client) -> None:
    request_id = waiting(staff)[0]
    open_job(line, request_id)
    choose(line, "front")
    line.get_by_test_id("section-audit").click()
    rows = line.get_by_test_id("audit-entries").locator("tbody tr")
    line.get_by_test_id("audit-text").fill(request_id)
    expect(rows).to_have_count(1)
    expect(rows.first).to_contain_text("operator")
    expect(rows.first).to_contain_text("move job up")
    line.get_by_test_id("audit-who").fill("somebody else")
    expect(rows.first).to_contain_text(re.compile("Nothing is recorded"))


def test_the_same_on_the_command_line(
    flooded: list[httpx.Response], staff: httpx.Client, echo: Instance
) -> None:
    listed = json.loads(echo.canopy("jobs", "list", "--json"))
    order = [row["request_id"] for row in listed["waiting"]]
    assert order == waiting(staff)
    assert [row["waiting"] for row in listed["models"] if row["model"] == "echo"] == [9]
    echo.canopy("jobs", "move", order[5])
    assert waiting(staff)[0] == order[5]
    echo.canopy("jobs", "class", order[0], "batch")
    assert waiting(staff)[-1] == order[0]
    echo.canopy("jobs", "cancel", order[1])
    assert order[1] not in waiting(staff)
    shown = json.loads(echo.canopy("jobs", "show", order[2], "--json"))
    assert (shown["node"], shown["user"]) == ("root", "admin")
    audit = json.loads(echo.canopy("audit", "--text", order[1], "--json"))["entries"]
    assert [entry["action"] for entry in audit] == ["cancel job"]


def test_the_pages_are_accessible(line: Page, staff: httpx.Client) -> None:
    record_something(staff)
    problems = violations(line)
    line.locator("[data-testid=waiting-jobs] [data-row] button").first.click()
    line.get_by_test_id("job-cancel").click()
    problems += violations(line)
    close_dialog(line)
    line.locator("[data-model=echo]").get_by_test_id("intake").click()
    problems += violations(line)
    close_dialog(line)
    line.get_by_test_id("section-audit").click()
    line.get_by_test_id("audit-entries").locator("td[data-title]").first.wait_for()
    problems += violations(line)
    assert problems == []


def test_pictures(
    flooded: list[httpx.Response], staff: httpx.Client, open_page: OpenPage, tmp_path: Path
) -> None:
    """Nothing scrolls sideways, in no look."""
    record_something(staff)
    folder = Path(os.environ.get("SCREENSHOTS") or tmp_path)
    folder.mkdir(parents=True, exist_ok=True)
    pages = {look: open_page("operator", **options) for look, options in LOOKS.items()}
    gallery = Gallery(folder, pages)
    gallery.open("/tree/line", "[data-testid=waiting-jobs] [data-row]")
    gallery.take("line", drawer=True)
    gallery.each(lambda page: page.locator("[data-testid=waiting-jobs] button").first.click())
    gallery.take("line-job", drawer=True)
    gallery.open("/tree/audit", "[data-testid=audit-entries] td[data-title]")
    gallery.take("audit", drawer=True)
