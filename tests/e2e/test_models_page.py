"""Loading, scaling and stopping a model from the dashboard; the nodes are real processes."""

import json
from collections.abc import Iterator

import httpx
import pytest
from playwright.sync_api import expect

from tests.e2e.conftest import OpenPage
from tests.e2e.test_accessible import violations, with_axe
from tests.e2e.test_node_actions import broker_edges, last_entry_of, wait_for_host
from tests.instance import Instance, Tree, jobs, tree_when

pytestmark = pytest.mark.timeout(180)
MODEL = "spare"


@pytest.fixture(scope="module")
def agent(echo: Instance, staff: httpx.Client) -> Iterator[None]:
    """A host that allows one more model."""
    words = ("agent", "--name", "annex", "--engine", "echo", "--allow-model", MODEL)
    with echo.child(*words, "--token-delay", "0.05"):
        wait_for_host(staff, "annex")
        yield


def workers(tree: Tree) -> list[str]:
    return [
        node["name"]
        for node in tree["nodes"]
        if node["model"] == MODEL and node["engine"] != "none" and node["state"] in ("idle", "busy")
    ]


def has_scaled_down(staff: httpx.Client) -> bool:
    """Whether the audit log says that the autoscaler has ended a node."""
    entries = staff.get("/api/operate/audit", params={"action": "stop node"}).json()["entries"]
    return any((entry["who"], entry["target"]) == ("autoscaler", MODEL) for entry in entries)


def set_by_command(echo: Instance) -> None:
    """What a command leaves out stays; "none" clears it."""
    echo.canopy("model", "set", MODEL, "--top-k", "40", "--temperature", "none")
    models = json.loads(echo.canopy("model", "list", "--json"))["models"]
    (model,) = [each for each in models if each["model"] == MODEL]
    settings = (model["top_k"], model["temperature"], model["most_requests"], model["most_tokens"])
    assert settings == (40, None, 2, 40)
    assert [node["root"] for node in model["nodes"]] == [True, False]
    assert "top_k=40" in echo.canopy("model", "list")


def test_a_model_is_loaded_scaled_and_stopped(
    agent: None, open_page: OpenPage, echo: Instance, staff: httpx.Client, program: httpx.Client
) -> None:
    page = with_axe(open_page("operator"))
    page.goto("/tree/models")
    card = page.locator(f"[data-testid=served-model][data-name='{MODEL}']")
    card.get_by_test_id("model-load").click()
    page.get_by_test_id("confirm-ok").click()
    tree_when(staff, lambda tree: len(workers(tree)) == 1)
    root = f"root-{MODEL}"
    assert broker_edges(echo).roots[root] == MODEL
    expect(card).to_contain_text("1 node ·")

    card.get_by_test_id("model-change").click()
    page.get_by_test_id("model-description").fill("One more echo")
    page.get_by_test_id("model-most").fill("40")
    page.get_by_test_id("model-requests").fill("2")
    page.get_by_test_id("default-temperature").fill("0.3")
    page.get_by_test_id("scale-on").check()
    page.get_by_test_id("scale-least").fill("1")
    page.get_by_test_id("scale-most").fill("2")
    page.get_by_test_id("scale-wait").fill("0")
    page.get_by_test_id("scale-cooldown").fill("5")
    assert violations(page) == []
    page.get_by_test_id("model-save").click()
    expect(card).to_contain_text("autoscaled from 1 to 2 nodes")
    expect(card).to_contain_text("One more echo")
    expect(card).to_contain_text("at most 2 requests of a user at a time")
    expect(card).to_contain_text("temperature 0.3")
    assert violations(page) == []
    set_by_command(echo)
    chat = open_page("reader")
    option = chat.locator(f"[data-testid=model-select] option[value={MODEL}]")
    expect(option).to_contain_text("One more echo")
    expect(option).to_contain_text("answers of up to 40 tokens")
    with jobs(program, 1, words=1000, model=MODEL) as [answer]:
        assert "".join(answer.iter_text()).count('"content":"') <= 41

    with jobs(program, 2, words=1000, model=MODEL):
        refused = program.post("/v1/completions", json={"model": MODEL, "prompt": "x"})
        assert (refused.status_code, refused.json()["error"]["code"]) == (429, "user_limit")

    unlimited = {"model": MODEL, "description": "One more echo"}
    assert staff.put("/api/operate/models/settings", json=unlimited).status_code == 204
    with jobs(program, 12, words=1000, model=MODEL):  # on eight slots
        tree_when(staff, lambda tree: len(workers(tree)) == 2)
    entry = last_entry_of(staff, "start node", MODEL, lambda each: each["who"] == "autoscaler")
    assert entry["result"].startswith("annex starts")
    tree_when(staff, lambda tree: has_scaled_down(staff))
    tree_when(staff, lambda tree: len(workers(tree)) == 1)
    assert echo.canopy("autoscale", "off", MODEL).strip() == f"{MODEL} is not autoscaled"

    card.get_by_test_id("model-stop").click()
    page.get_by_test_id("confirm-ok").click()
    expect(card).to_contain_text("not served now")
    tree_when(staff, lambda tree: not workers(tree))
    assert root not in broker_edges(echo).present
    ended = page.locator(f"[data-testid=tree-ended][data-root={root}]")
    ended.get_by_test_id("forget").click()
    expect(page.get_by_test_id("action-effect")).to_contain_text("has ended")
    page.get_by_test_id("action-confirm").click()
    expect(ended).to_have_count(0)
    assert root not in broker_edges(echo).registered
