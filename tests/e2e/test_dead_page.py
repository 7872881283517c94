"""The page of dead jobs: what is there, run again, changed, dropped; what the broker says of it."""

import json
from collections.abc import Iterator

import httpx
import pytest
from playwright.sync_api import Locator, Page, expect

from broker.wire import Job
from tests.e2e.conftest import OpenPage
from tests.e2e.dead_letters import bury, dead_job, depth
from tests.e2e.test_accessible import violations, with_axe
from tests.instance import PASSWORD, Instance

pytestmark = pytest.mark.timeout(170)

_ADD_ADMINISTRATOR = """
import sys, django
django.setup()
from api.accounts.models import User
User.objects.create_superuser("chief", password=sys.argv[1])
"""


@pytest.fixture(scope="module")
def chief(echo: Instance) -> str:
    """An administrator with a password."""
    echo.python(_ADD_ADMINISTRATOR, PASSWORD)
    return "chief"


@pytest.fixture
def jobs(echo: Instance, staff: httpx.Client) -> Iterator[list[Job]]:
    """Two jobs that can run, one for a model that is not here, and a message that is no job."""
    letters = [dead_job("rise and shine"), dead_job("once more"), dead_job("lost", "elsewhere")]
    bury(echo, *letters, b'{"request_id": \xff')
    yield letters
    assert staff.post("/api/operate/dead/drop", json={"all": True}).is_success


def row(page: Page, job: Job) -> Locator:
    return page.locator(f"[data-testid=dead-letter][data-id='{job.request_id}']")


def run_of(page: Page, job: Job) -> Locator:
    """The newest run of the job."""
    return page.locator(f"[data-testid=replay][data-letter='{job.request_id}']").first


def opened(open_page: OpenPage, user: str = "operator", letters: int = 4) -> Page:
    page = open_page(user)
    page.goto("/tree/dead")
    expect(page.get_by_test_id("dead-letter")).to_have_count(letters)
    return page


def test_several_run_again_and_those_that_are_answered_go(
    open_page: OpenPage, echo: Instance, jobs: list[Job]
) -> None:
    page = opened(open_page)
    assert depth(echo) == 4
    expect(page.get_by_test_id("section-dead").get_by_test_id("count")).to_have_text("4")
    expect(page.get_by_test_id("dead-count")).to_contain_text("4 dead jobs")
    expect(row(page, jobs[0])).to_contain_text("given up after 3 lost runs")
    page.get_by_role("checkbox", name="Select all").check()
    page.get_by_test_id("dead-replay").click()
    expect(page.get_by_test_id("confirm-dialog")).to_contain_text("3 jobs run again")
    page.get_by_test_id("confirm-ok").click()
    for job in jobs[:2]:
        expect(run_of(page, job)).to_have_attribute("data-state", "answered")
        expect(row(page, job)).to_have_count(0)
    expect(run_of(page, jobs[2])).to_contain_text("there is no tree of the model 'elsewhere' now")
    expect(page.get_by_test_id("dead-letter")).to_have_count(2)
    assert depth(echo) == 2
    expect(page.get_by_test_id("section-dead").get_by_test_id("count")).to_have_text("2")
    assert json.loads(echo.canopy("dead", "list", "--json"))["letters"][0]["id"] == (
        jobs[2].request_id
    )
    expect(page.get_by_test_id("dead-read")).to_have_count(0)


def test_an_administrator_reads_changes_and_runs_a_job(
    open_page: OpenPage, echo: Instance, jobs: list[Job], chief: str
) -> None:
    page = opened(open_page, chief)
    row(page, jobs[2]).get_by_test_id("dead-open").click()
    dialog = page.get_by_test_id("dead-dialog")
    expect(dialog).to_contain_text("n1 died while it ran")
    dialog.get_by_test_id("dead-read").click()
    expect(dialog.get_by_test_id("dead-texts")).to_contain_text("lost")
    dialog.get_by_test_id("dead-edit").click()
    dialog.get_by_test_id("edit-model").fill("echo")
    dialog.get_by_test_id("edit-message").fill("found again")
    dialog.get_by_test_id("edit-max-tokens").fill("2")
    dialog.get_by_test_id("edit-send").click()
    expect(dialog).to_have_count(0)
    run = run_of(page, jobs[2])
    expect(run).to_have_attribute("data-state", "answered")
    run.get_by_role("button", name="Read the answer").click()
    expect(run.locator("blockquote")).to_have_text("found again")
    entries = page.request.get("/api/operate/audit?who=chief&limit=3").json()["entries"]
    assert [entry["action"] for entry in entries] == [
        "look at a replay's answer",
        "replay dead letters",
        "look at a dead letter",
    ]
    assert depth(echo) == 3


def test_letters_are_dropped_with_the_keyboard_alone(
    open_page: OpenPage, echo: Instance, jobs: list[Job]
) -> None:
    page = opened(open_page)
    page.get_by_role("checkbox", name=f"Select {jobs[0].request_id}").focus()
    page.keyboard.press("Space")
    page.get_by_test_id("dead-drop").focus()
    page.keyboard.press("Enter")
    expect(page.get_by_test_id("confirm-dialog")).to_contain_text("removed for good")
    page.keyboard.press("Tab")
    page.keyboard.press("Enter")
    expect(row(page, jobs[0])).to_have_count(0)
    assert depth(echo) == 3
    bury(echo, dead_job("a new one"))
    expect(page.get_by_test_id("dead-letter")).to_have_count(4)


def test_axe_finds_nothing(open_page: OpenPage, jobs: list[Job], chief: str) -> None:
    page = with_axe(open_page(chief))
    page.goto("/tree/dead")
    expect(page.get_by_test_id("dead-letter")).to_have_count(4)
    problems = violations(page)
    row(page, jobs[0]).get_by_test_id("dead-open").click()
    page.get_by_test_id("dead-edit").click()
    page.get_by_test_id("edit-send").wait_for()
    problems += violations(page)
    assert problems == []
