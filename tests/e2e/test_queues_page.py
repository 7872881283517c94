"""The dashboard's page of the broker, against the broker itself."""

import re

import pytest
from playwright.sync_api import expect

from tests.e2e.conftest import OpenPage

pytestmark = pytest.mark.timeout(170)


def test_the_broker_and_its_queues_are_shown(open_page: OpenPage) -> None:
    page = open_page("operator")
    page.goto("/tree/queues")
    expect(page.get_by_test_id("broker-health")).to_contain_text("The broker is well")
    rows = page.locator("[data-testid=queue-table] tbody tr")
    expect(rows.filter(has_text="canopy.node.n2")).to_contain_text("jobs of a node")
    expect(page.locator("[data-row='canopy.inbox.n2']")).to_have_count(0)
    page.get_by_test_id("queue-all").check()
    expect(page.locator("[data-row='canopy.inbox.n2']")).to_have_count(1)

    page.get_by_test_id("edges").locator("summary").click()
    edges = page.locator("[data-testid=edge-table] tbody tr")
    expect(edges.filter(has_text=re.compile(r"canopy\.node\.n1\s*n3"))).to_have_count(1)

    link = page.get_by_test_id("rabbitmq-page").get_attribute("href") or ""
    assert link and "@" not in link  # no password
    page.get_by_role("button", name="canopy.node.n2").click()
    expect(page.get_by_test_id("node-details")).to_contain_text("n2")
