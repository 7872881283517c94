"""Pictures of the dashboard's history, dead jobs and logs: desktop and phone, light and dark.

They go where those of test_screenshots.py go. Nothing may scroll sideways.
"""

import os
from pathlib import Path

import pytest

from tests.e2e.conftest import OpenPage
from tests.e2e.dead_letters import bury, dead_job
from tests.e2e.test_screenshots import LOOKS, Gallery
from tests.instance import Instance

pytestmark = pytest.mark.timeout(175)

_FILL_HISTORY = """
import math, random, time
import django
django.setup()
from api.operate.history import store
from api.operate.history.counts import EndedRequest, Tally
from api.operate.history.models import HistoryRow

rng = random.Random(1)
now = int(time.time()) // 60 * 60

def made_up(load):
    tally = Tally()
    for _ in range(max(0, round(rng.gauss(load, load / 5)))):
        tally.add(EndedRequest(
            model=rng.choice(["llama3", "llama3", "smollm2"]),
            user=rng.choice(["ada", "bob", "carla"]),
            node=rng.choice(["n1", "n2", "n3"]),
            outcome=rng.choice(["finished"] * 30 + ["failed"]),
            wait=rng.lognormvariate(-1, 1),
            service=rng.lognormvariate(1, 0.6),
            prompt_tokens=40,
            completion_tokens=120,
        ))
    return tally

# Under a process of its own, no row can be one that a recorder or another test has written, and no
# count of the models that run here changes.
rows = []
for minute in range(1, 61):
    start = now - minute * 60
    rows += store.rows_of(60, start, made_up(8 + 6 * math.sin(start / 700)), "pictures")
for hour in range(1, 14 * 24):
    start = (now // 3600 - hour) * 3600
    rows += store.rows_of(3600, start, made_up(30 + 25 * math.sin(start / 14000)), "pictures")
HistoryRow.objects.bulk_create(rows)
"""


@pytest.fixture
def gallery(open_page: OpenPage, tmp_path: Path) -> Gallery:
    """The pages of an operator, in all looks."""
    folder = Path(os.environ.get("SCREENSHOTS") or tmp_path)
    folder.mkdir(parents=True, exist_ok=True)
    pages = {look: open_page("operator", **options) for look, options in LOOKS.items()}
    return Gallery(folder, pages)


_FILL_DRILLS = """
import django
django.setup()
from api.operate.drills.models import Drill, State

made_up = [(0, 0, None, 2.1), (7, 2, 3.4, 4.9), (2, 0, 1.8, 3.2)]
for affected, returned, slowest, back in made_up:
    Drill.objects.create(
        node="n2", host="here", by="ada", state=State.DONE, processes=2, affected=affected,
        moved=affected - returned, returned=returned, slowest=slowest, back=back,
    )
Drill.objects.create(
    node="n3", host="here", by="ada", state=State.FAILED, note="the process that conducted it ended"
)
"""


@pytest.fixture
def administrators(open_page: OpenPage, echo: Instance, tmp_path: Path) -> Gallery:
    """The pages of an administrator, in all looks."""
    folder = Path(os.environ.get("SCREENSHOTS") or tmp_path)
    folder.mkdir(parents=True, exist_ok=True)
    pages = {}
    for look, options in LOOKS.items():
        pages[look] = open_page(None, expected="status of 404", **options)
        pages[look].goto(f"/login?token={echo.login_token()}")
    return Gallery(folder, pages)


def test_drills(administrators: Gallery, echo: Instance) -> None:
    echo.python(_FILL_DRILLS)
    administrators.open("/tree/drills", "[data-testid=drill]")
    administrators.take("drills")
    administrators.each(lambda page: page.get_by_test_id("drill-start").click())
    administrators.each(lambda page: page.get_by_test_id("drill-plan").wait_for())
    administrators.take("drill-plan")


def test_history_dead_jobs_and_logs(gallery: Gallery, echo: Instance) -> None:
    echo.python(_FILL_HISTORY)
    letters = [dead_job(f"job {number}") for number in range(5)]
    bury(echo, *letters, dead_job("of another model", "elsewhere"), b'{"request_id": \xff')

    gallery.open("/tree/history", "[data-testid=chart]")
    gallery.take("history-hour")
    gallery.each(lambda page: page.get_by_test_id("span-604800").click())
    gallery.each(lambda page: page.get_by_test_id("history-compare").select_option("604800"))
    gallery.each(
        lambda page: page.locator(".u-legend", has_text="(a week before)").first.wait_for()
    )
    gallery.take("history-compared")
    gallery.each(lambda page: page.get_by_test_id("history-table").click())
    gallery.take("history-table")

    gallery.open("/tree/dead", "[data-testid=dead-letter]")
    gallery.take("dead-jobs")
    gallery.each(lambda page: page.get_by_test_id("dead-open").first.click())
    gallery.take("dead-letter")
    echo.canopy("dead", "drop", "--all")

    gallery.open("/tree/logs", "[data-testid=log-line]")
    gallery.take("logs")
