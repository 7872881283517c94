"""The history on the dashboard, against what was sent and what the nodes count themselves."""

from concurrent.futures import ThreadPoolExecutor

import httpx
import pytest
from playwright.sync_api import Page, expect

from tests.e2e.conftest import OpenPage
from tests.e2e.test_accessible import violations, with_axe
from tests.instance import Instance, at_rest, total, tree_when

pytestmark = pytest.mark.timeout(175)
REQUESTS = 200
WORDS = 2


def send(program: httpx.Client, count: int) -> None:
    """Requests of WORDS tokens each, sixteen at a time."""
    body = {
        "model": "echo",
        "max_tokens": WORDS,
        "messages": [{"role": "user", "content": "counted by everybody"}],
    }

    def one(_: int) -> None:
        assert program.post("/v1/chat/completions", json=body).status_code == 200

    with ThreadPoolExecutor(16) as threads:
        list(threads.map(one, range(count)))


def shown(staff: httpx.Client, **query: str) -> dict[str, float]:
    """The totals of the last hour, by name."""
    answer = staff.get("/api/operate/history", params=query)
    assert answer.status_code == 200, answer.text
    return {line["name"]: line["total"] for line in answer.json()["series"]}


def finished(staff: httpx.Client) -> int:
    """What the nodes themselves count as ended."""
    tree = tree_when(staff, at_rest)
    return total({"nodes": [node for node in tree["nodes"] if node["slots"]]}, "finished")


def test_requests_are_counted_as_sent_and_as_the_nodes_count(
    echo: Instance, staff: httpx.Client, open_page: OpenPage
) -> None:
    before, ended_before = shown(staff, by="user"), finished(staff)
    tokens_before = shown(staff, by="user", metric="tokens_out")
    with echo.program(echo.key("reader")) as program:
        send(program, REQUESTS)
    after = shown(staff, by="user")
    assert after["reader"] - before.get("reader", 0) == REQUESTS
    tokens = shown(staff, by="user", metric="tokens_out")
    assert tokens["reader"] - tokens_before.get("reader", 0) == REQUESTS * WORDS
    tree_when(staff, lambda tree: at_rest(tree) and _ended(tree) - ended_before == REQUESTS)
    assert sum(shown(staff, by="model").values()) == sum(after.values())
    used = shown(staff, by="model", metric="utilisation")
    assert 0 < used["echo"] <= 1

    page = open_history(open_page)
    page.get_by_test_id("history-by").select_option("user")
    page.get_by_test_id("history-table").click()
    cell = page.locator("[data-testid=total][data-name=reader]")
    expect(cell).to_have_attribute("data-value", str(int(after["reader"])))
    printed = echo.canopy("history", "--by", "user", "--csv")
    place = printed.splitlines()[0].split(",").index("reader")
    counts = [int(float(line.split(",")[place])) for line in printed.splitlines()[1:]]
    assert sum(counts) == after["reader"]


def _ended(tree: dict[str, list[dict[str, int]]]) -> int:
    return sum(node["finished"] for node in tree["nodes"] if node["slots"])


def open_history(open_page: OpenPage) -> Page:
    page = with_axe(open_page("operator"))
    page.goto("/tree/history")
    expect(page.get_by_test_id("chart").or_(page.get_by_test_id("history-empty"))).to_be_visible()
    return page


_ADD_HOUR = """
import sys, time, django
django.setup()
from api.operate.history.models import HistoryRow
hour = (int(time.time()) // 3600 - 7 * 24) * 3600
HistoryRow.objects.create(
    seconds=3600, start=hour, kind="model", name="echo", process="a week ago", requests=42
)
"""


def test_the_chart_is_zoomed_with_the_mouse_and_with_the_keyboard(
    echo: Instance, program: httpx.Client, open_page: OpenPage
) -> None:
    send(program, 1)
    echo.python(_ADD_HOUR)
    page = open_history(open_page)
    span = page.get_by_test_id("history-span")
    hour = span.inner_text()
    area = page.locator(".u-over")
    box = area.bounding_box()
    assert box is not None
    page.mouse.move(box["x"] + box["width"] * 0.5, box["y"] + 50)
    page.mouse.down()
    page.mouse.move(box["x"] + box["width"] * 0.9, box["y"] + 60, steps=5)
    page.mouse.up()
    expect(span).not_to_have_text(hour)
    dragged = span.inner_text()
    page.locator(".keys").focus()
    page.keyboard.press("-")
    expect(span).not_to_have_text(dragged)
    page.keyboard.press("ArrowLeft")
    page.get_by_test_id("span-604800").click()
    expect(page.get_by_test_id("span-604800")).to_have_attribute("aria-pressed", "true")
    page.get_by_test_id("history-compare").select_option("604800")
    expect(page.locator(".u-legend")).to_contain_text("echo (a week before)")
    page.get_by_test_id("history-table").click()
    earlier = page.locator("[data-testid=total][data-name='echo (a week before)']")
    expect(earlier).to_have_attribute("data-value", "42")


def test_it_is_exported_and_accessible(open_page: OpenPage) -> None:
    page = open_history(open_page)
    with page.expect_download() as download:
        page.get_by_test_id("history-csv").click()
    assert download.value.suggested_filename == "canopy-requests-by-model.csv"
    problems = violations(page)
    page.get_by_test_id("history-table").click()
    page.get_by_test_id("history-rows").wait_for()
    problems += violations(page)
    assert problems == []
