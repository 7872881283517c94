"""Acting on a live tree of 15 nodes from the dashboard; the effect is looked up in the broker."""

import json
import os
import re
from collections.abc import Callable, Iterator
from contextlib import suppress

import httpx
import pytest
from playwright.sync_api import Locator, Page, expect

from broker.management import Edges, read_edges
from cli import procfs
from tests.e2e.conftest import OpenPage
from tests.e2e.test_accessible import violations, with_axe
from tests.instance import WAIT_SECONDS, Instance, Tree, at_rest, jobs, total, tree_when

pytestmark = pytest.mark.timeout(180)
ADDED = [f"n{number}" for number in range(4, 16)]


@pytest.fixture(scope="module")
def host(staff: httpx.Client) -> str:
    """The agent of `up`, once it is heard."""
    with staff.stream("GET", "/api/operate/hosts/stream", timeout=WAIT_SECONDS) as events:
        for line in events.iter_lines():
            first = re.search(r'"hosts": ?\[\{"name": ?"([a-z0-9_-]+)"', line)
            if first:
                return first[1]
    pytest.fail("no host has an agent")


@pytest.fixture(scope="module")
def grown(staff: httpx.Client, host: str) -> Iterator[None]:
    """The tree has 15 nodes, 12 of them started by the agent of this machine."""
    for name in ADDED:
        body = {"model": "echo", "name": name, "parent": f"n{int(name[1:]) // 2}"}
        if name in ("n4", "n5", "n6", "n7"):
            started = staff.post(f"/api/operate/hosts/{host}/nodes", json=body)
            assert started.status_code == 202, started.text
    tree_when(staff, lambda tree: serves(tree, ADDED[:4]))
    for name in ADDED[4:]:
        body = {"model": "echo", "name": name, "parent": f"n{int(name[1:]) // 2}"}
        started = staff.post(f"/api/operate/hosts/{host}/nodes", json=body)
        assert started.status_code == 202, started.text
    tree_when(staff, lambda tree: serves(tree, ADDED))
    yield
    for name in ADDED[::-1]:
        with suppress(httpx.HTTPError):
            staff.delete(f"/api/operate/hosts/{host}/nodes/{name}")
    tree_when(staff, lambda tree: len(alive(tree)) == 4)


@pytest.fixture
def dashboard(grown: None, open_page: OpenPage, staff: httpx.Client) -> Page:
    tree_when(staff, at_rest)
    page = open_page("operator", expected="status of 404")
    page.goto("/tree/")
    expect(card(page, "n1")).to_be_visible()  # all are drawn at once; some may be leaving
    return page


def alive(tree: Tree) -> list[str]:
    return [
        node["name"]
        for node in tree["nodes"]
        if node["state"] != "down" and node["model"] == "echo"
    ]


def serves(tree: Tree, names: list[str]) -> bool:
    states = {node["name"]: node["state"] for node in tree["nodes"]}
    return all(states.get(name) == "idle" for name in names)


def parents_of(tree: Tree, *names: str) -> list[str]:
    parents = {node["name"]: node["parent"] for node in tree["nodes"]}
    return [parents[name] for name in names]


def card(page: Page, name: str) -> Locator:
    return page.locator(f"[data-testid=tree-node][data-name='{name}']")


def choose(page: Page, name: str, action: str) -> Locator:
    """Opens a node's details and one of its actions there; the dialog with what it would do."""
    card(page, name).locator("[data-select]").click()
    page.get_by_test_id("node-details").get_by_test_id(f"action-{action}").click()
    return page.get_by_test_id("action-effect")


def confirm(page: Page) -> None:
    page.get_by_test_id("action-confirm").click()
    expect(page.get_by_test_id("action-dialog")).to_have_count(0)


def broker_edges(echo: Instance) -> Edges:
    """The tree as RabbitMQ's own management API lists it now."""
    url = echo.broker.management["admin"]
    bindings = httpx.get(f"{url}/api/bindings/%2F").json()
    queues = httpx.get(f"{url}/api/queues/%2F?columns=name&disable_stats=true").json()
    return read_edges(bindings, queues)


def delta_of(line: str) -> str:
    """The text in one line of a streamed answer."""
    if not line.startswith("data: {"):
        return ""
    choices = json.loads(line.removeprefix("data: "))["choices"]
    return str(choices[0]["delta"].get("content") or "") if choices else ""


def node_of(staff: httpx.Client, name: str) -> dict[str, object]:
    tree = staff.get("/api/tree").json()
    return next(node for node in tree["nodes"] if node["name"] == name)


def last_entry(staff: httpx.Client) -> dict[str, str]:
    entries: list[dict[str, str]] = staff.get("/api/operate/audit").json()["entries"]
    return entries[0]


def test_draining_an_inner_node_says_beforehand_what_it_takes(
    dashboard: Page, program: httpx.Client, staff: httpx.Client
) -> None:
    with jobs(program, 5, words=1000):
        tree_when(staff, lambda tree: total(tree, "running") == 5)
        effect = choose(dashboard, "n2", "drain")
        expect(effect).to_contain_text("n2 and 6 nodes below it get no more jobs")
        slots = sum(node["slots"] for node in staff.get("/api/tree").json()["nodes"])
        expect(effect).to_contain_text(f"of the {slots} slots")
        confirm(dashboard)
    expect(card(dashboard, "n2")).to_have_attribute("data-state", "drained")
    expect(card(dashboard, "n8")).to_have_attribute("data-state", "below_draining")
    with jobs(program, 8, words=1000):
        tree = tree_when(staff, lambda tree: total(tree, "running") == 8)
        running = {node["name"] for node in tree["nodes"] if node["running"]}
        assert running.isdisjoint({"n2", "n4", "n5", "n8", "n9", "n10", "n11"})
    choose(dashboard, "n2", "resume")
    confirm(dashboard)
    expect(card(dashboard, "n8")).to_have_attribute("data-state", "idle")
    assert (last_entry(staff)["who"], last_entry(staff)["action"]) == ("operator", "resume")


def test_a_node_moves_by_keyboard_alone(
    dashboard: Page, echo: Instance, staff: httpx.Client
) -> None:
    card(dashboard, "n15").locator("[data-select]").focus()
    dashboard.keyboard.press("Enter")
    move = dashboard.get_by_test_id("node-details").get_by_test_id("action-move")
    move.focus()
    dashboard.keyboard.press("Enter")
    dashboard.keyboard.type("n4")
    dashboard.keyboard.press("Enter")
    expect(dashboard.get_by_test_id("action-effect")).to_contain_text("moves below n4")
    dashboard.get_by_test_id("action-confirm").focus()
    dashboard.keyboard.press("Enter")
    expect(dashboard.get_by_test_id("action-dialog")).to_have_count(0)
    assert broker_edges(echo).parents["n15"] == "n4"


def test_a_node_moves_by_drag(dashboard: Page, echo: Instance) -> None:
    start, end = (card(dashboard, name).bounding_box() for name in ("n14", "n5"))
    assert start
    assert end
    mouse = dashboard.mouse
    mouse.move(start["x"] + start["width"] / 2, start["y"] + start["height"] / 2)
    mouse.down()
    mouse.move(end["x"] + end["width"] / 2, end["y"] + end["height"] / 2, steps=5)
    expect(card(dashboard, "n5")).to_have_attribute("data-drop", "")
    mouse.up()
    expect(dashboard.get_by_test_id("action-effect")).to_contain_text("n14 moves below n5")
    confirm(dashboard)
    assert broker_edges(echo).parents["n14"] == "n5"
    assert "n14" not in dashboard.url


def test_a_running_job_survives_the_restart_of_its_node(
    dashboard: Page, echo: Instance, program: httpx.Client, staff: httpx.Client
) -> None:
    pid = int(str(node_of(staff, "n3")["pid"]))
    with jobs(program, 1, words=100) as answers:
        tree = tree_when(staff, lambda tree: total(tree, "running") == 1)
        busy = next(node["name"] for node in tree["nodes"] if node["running"])
        card(dashboard, busy).locator("[data-select]").click(button="right")
        dashboard.get_by_role("menu").get_by_test_id("action-restart").click()
        expect(dashboard.get_by_test_id("action-effect")).to_contain_text("no text is lost")
        confirm(dashboard)
        text = "".join(map(delta_of, answers[0].iter_lines()))
    assert text.split() == ["again"] * 100
    tree_when(staff, lambda tree: serves(tree, [busy]))
    assert float(str(node_of(staff, busy)["uptime"])) < 30
    assert procfs.started(pid) is not None


def test_a_subtree_restarts_from_its_leaves_up(dashboard: Page, staff: httpx.Client) -> None:
    pids = {name: node_of(staff, name)["pid"] for name in ("n6", "n12", "n13")}
    expect(choose(dashboard, "n6", "restartAll")).to_contain_text("3 nodes, restart one level")
    confirm(dashboard)
    restarted = until(staff, "restarted 3")
    assert restarted["target"] == "n6"
    for name, pid in pids.items():
        node = node_of(staff, name)
        assert (node["pid"], node["state"]) == (pid, "idle")
        assert float(str(node["uptime"])) < 60
    # children come home with a heartbeat
    tree_when(staff, lambda tree: parents_of(tree, "n12", "n13") == ["n6", "n6"])


def until(staff: httpx.Client, result: str) -> dict[str, str]:
    """The last entry of the audit log, once it has that result; the tree tells when to look."""

    def is_there(_: Tree) -> bool:
        return last_entry(staff)["result"] == result

    tree_when(staff, is_there)
    return last_entry(staff)


def test_a_removed_node_is_gone_for_good(
    dashboard: Page, echo: Instance, staff: httpx.Client, host: str
) -> None:
    pid = int(str(node_of(staff, "n7")["pid"]))
    below = node_of(staff, "n7")["children"]
    assert isinstance(below, list)
    effect = choose(dashboard, "n7", "remove")
    if below:
        expect(effect).to_contain_text(f"{', '.join(below)} move below n3")
    confirm(dashboard)
    expect(card(dashboard, "n7")).to_have_count(0)
    now = broker_edges(echo)
    assert "n7" not in now.registered  # its queue is deleted
    assert [now.parents[name] for name in below] == ["n3"] * len(below)
    tree_when(staff, lambda tree: procfs.started(pid) is None)
    tree_when(staff, lambda tree: "n7" not in on_hosts(staff))
    assert "removed" in echo.canopy("status")


def test_what_cannot_be_done_is_said_in_the_dialog(dashboard: Page, staff: httpx.Client) -> None:
    choose(dashboard, "n13", "drain")
    staff.post("/api/operate/nodes/n13", json={"action": "remove"})
    dashboard.get_by_test_id("action-confirm").click()
    expect(dashboard.get_by_test_id("action-problem")).to_contain_text("No node named 'n13'")


def test_a_worker_is_started_and_stopped_on_a_host(
    grown: None, open_page: OpenPage, echo: Instance, staff: httpx.Client, host: str
) -> None:
    page = open_page("operator")
    page.goto("/tree/hosts")
    shown = page.locator(f"[data-testid=host][data-name='{host}']")
    expect(shown).to_contain_text(f"{os.cpu_count()} cores")
    shown.get_by_test_id("start-node").click()
    page.get_by_test_id("start-slots").fill("3")
    page.get_by_test_id("start-parent").select_option("root")
    page.get_by_test_id("start-go").click()
    toast = page.get_by_text(re.compile(rf"{host} starts n\d+"))
    expect(toast).to_be_visible()
    name = (toast.inner_text().split() or [""])[-1].rstrip(".")
    row = shown.locator(f"[data-testid=host-node][data-name='{name}']")
    expect(row).to_have_attribute("data-state", "running")
    assert broker_edges(echo).parents[name] == "root"
    tree_when(staff, lambda tree: serves(tree, [name]))
    assert node_of(staff, name)["slots"] == 3

    row.get_by_test_id("stop-node").click()
    page.get_by_test_id("confirm-ok").click()
    expect(row).to_have_count(0)
    assert name not in broker_edges(echo).registered
    assert last_entry(staff)["action"] == "stop node"


def test_hosts_and_dialogs_are_accessible(dashboard: Page) -> None:
    page = with_axe(dashboard)
    page.goto("/tree/")
    choose(page, "n12", "drain")
    problems = violations(page)
    page.get_by_test_id("action-cancel").click()
    page.get_by_test_id("node-details").get_by_test_id("action-move").click()
    problems += violations(page)
    page.goto("/tree/hosts")
    page.get_by_test_id("host").first.wait_for()
    problems += violations(page)
    page.get_by_test_id("start-node").first.click()
    problems += violations(page)
    assert problems == []


def test_a_second_agent_serves_beside_the_first(
    grown: None, echo: Instance, staff: httpx.Client
) -> None:
    """On the command line: a host of another name, refused twice, its nodes end with it."""
    words = ("agent", "--name", "second", "--engine", "echo", "--allow-model", "echo")
    with echo.child(*words, "--max-nodes", "1"):
        wait_for_host(staff, "second")
        refused = echo.child(*words)
        with refused as process:
            assert process.wait(timeout=WAIT_SECONDS) == 1
        said = echo.canopy("host", "start", "second", "echo", "--name", "x1", "--parent", "root")
        assert said.strip() == "second starts x1 below root"
        tree_when(staff, lambda tree: serves(tree, ["x1"]))
        more = staff.post("/api/operate/hosts/second/nodes", json={"model": "echo"})
        assert more.status_code == 400
        assert "no more are allowed" in more.json()["error"]["message"]
        entry = last_entry_of(staff, "start node", "second", lambda each: "command" in each["who"])
        assert entry["detail"] == "echo"
    tree_when(staff, lambda tree: "x1" not in alive(tree))
    assert "x1" not in broker_edges(echo).present


def on_hosts(staff: httpx.Client) -> list[str]:
    """The nodes that agents run."""
    hosts = staff.get("/api/operate/hosts").json()["hosts"]
    return [node["name"] for host in hosts for node in host["nodes"]]


def wait_for_host(staff: httpx.Client, name: str) -> None:
    with staff.stream("GET", "/api/operate/hosts/stream", timeout=WAIT_SECONDS) as events:
        for line in events.iter_lines():
            if f'"{name}"' in line:
                return


def last_entry_of(
    staff: httpx.Client, action: str, target: str, fits: Callable[[dict[str, str]], bool]
) -> dict[str, str]:
    entries = staff.get("/api/operate/audit", params={"action": action}).json()["entries"]
    return next(entry for entry in entries if entry["target"] == target and fits(entry))


def test_the_audit_log_has_what_the_command_line_did(echo: Instance, staff: httpx.Client) -> None:
    for words in (("drain", "n3"), ("resume", "n3"), ("dead", "drop", "--all")):
        echo.canopy(*words)
    with pytest.raises(AssertionError, match="no-such-letter"):  # it exits with status 1
        echo.canopy("dead", "show", "no-such-letter")
    entries = staff.get("/api/operate/audit", params={"limit": 4}).json()["entries"]
    assert all(entry["who"].endswith(" via command line") for entry in entries)
    results = [(entry["action"], entry["target"], entry["result"]) for entry in entries[::-1]]
    assert results[:2] == [("drain", "n3", "done"), ("resume", "n3", "done")]
    assert results[2] == ("drop dead letters", "all", "dropped 0")
    assert results[3][:2] == ("look at a dead letter", "no-such-letter")
    assert "There is no dead letter" in results[3][2]
