"""Acting on nodes over HTTP: what it would do, that it happened, who did it."""

import asyncio
from dataclasses import replace

import httpx
import pytest

from api.operate.nodes import actions
from broker.management import Edges
from broker.wire import Attach, Drain, RemoveGone, Restart
from tests.unit.api_site import FakeClient, node_state, until
from tests.unit.test_api_tree import EDGES, overview_of

ENDED = Edges(
    roots={"root": "tiny", "root-big": "big"},
    parents={"n1": "root", "n4": "root-big"},
    present=frozenset({"root", "n1"}),
    registered=frozenset({"root", "n1", "root-big", "n4"}),
)


@pytest.fixture(autouse=True)
def tree(fake: FakeClient) -> None:
    """root -> (n1, n2), and n3 below n1 is dead."""
    fake.reports.publish(overview_of(EDGES))
    fake.states["root"] = node_state("root", engine="none", slots=0, parent=None, held=3)
    fake.states["n1"] = node_state("n1", running=1)
    fake.states["n2"] = node_state("n2", started=0.0)


async def test_a_preview_changes_nothing(staff: httpx.AsyncClient, fake: FakeClient) -> None:
    answer = await staff.get("/api/operate/nodes/n1/effect", params={"action": "drain"})
    effect = answer.json()
    assert effect["nodes"] == ["n1", "n3"]
    assert (effect["slots"], effect["all_slots"]) == (2, 4)
    assert (effect["running"], effect["waiting"]) == (1, 3)
    assert fake.controls == []


async def test_an_action_is_answered_when_the_tree_shows_it(
    staff: httpx.AsyncClient, fake: FakeClient
) -> None:
    drain = asyncio.create_task(staff.post("/api/operate/nodes/n1", json={"action": "drain"}))
    await until(lambda: ("n1", Drain()) in fake.controls)
    assert not drain.done()
    fake.change(node_state("n1", running=1, status="draining"))
    answer = (await drain).json()
    assert answer["done"] is True
    entries = (await staff.get("/api/operate/audit")).json()["entries"]
    assert (entries[0]["action"], entries[0]["target"]) == ("drain", "n1")
    assert entries[0]["result"] == "done"


async def test_an_action_without_effect_fails(
    staff: httpx.AsyncClient, fake: FakeClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(actions, "CONFIRM_SECONDS", 0.2)
    answer = await staff.post("/api/operate/nodes/n1", json={"action": "restart"})
    assert answer.status_code == 504
    assert ("n1", Restart()) in fake.controls
    entries = (await staff.get("/api/operate/audit")).json()["entries"]
    assert "does not show it" in entries[0]["result"]


@pytest.mark.parametrize(
    ("name", "body", "status"),
    [
        ("n9", {"action": "drain"}, 404),
        ("root", {"action": "remove"}, 400),
        ("n1", {"action": "move"}, 400),
        ("n1", {"action": "move", "parent": "n3"}, 400),
        ("n1", {"action": "move", "parent": "../n2"}, 422),
        ("n1", {"action": "explode"}, 422),
    ],
)
async def test_what_cannot_be_done_is_refused(
    staff: httpx.AsyncClient, fake: FakeClient, name: str, body: dict[str, str], status: int
) -> None:
    answer = await staff.post(f"/api/operate/nodes/{name}", json=body)
    assert answer.status_code in (status, 400)
    assert fake.controls == []


async def test_a_node_moves(staff: httpx.AsyncClient, fake: FakeClient) -> None:
    body = {"action": "move", "parent": "n2"}
    moving = asyncio.create_task(staff.post("/api/operate/nodes/n1", json=body))
    await until(lambda: ("n1", Attach(parent="n2")) in fake.controls)
    moving.cancel()
    await asyncio.gather(moving, return_exceptions=True)


async def test_what_is_left_of_a_tree_that_ended_is_removed(
    staff: httpx.AsyncClient, fake: FakeClient
) -> None:
    """Of `big`: its root is registered, and nothing of it lives."""
    fake.reports.publish(overview_of(ENDED))
    path = "/api/operate/nodes/root-big"
    effect = (await staff.get(f"{path}/effect", params={"action": "remove"})).json()
    assert (effect["gone"], effect["nodes"]) == (True, ["root-big", "n4"])
    assert "has ended" in effect["text"]
    fake.queue_type = "quorum"
    for refused in (
        await staff.get(f"{path}/effect", params={"action": "remove"}),
        await staff.post(path, json={"action": "remove"}),
    ):
        assert refused.status_code == 400
        assert "quorum queues" in refused.json()["error"]["message"]
    assert fake.controls == []
    fake.queue_type = "classic"
    assert (await staff.post(path, json={"action": "remove"})).status_code == 200
    assert fake.controls == [("root", RemoveGone(nodes=("n4", "root-big")))]
    assert "root-big" not in (await staff.get("/api/tree")).json()["roots"]


async def test_without_a_tree_that_lives_the_command_line_removes_one(
    staff: httpx.AsyncClient, fake: FakeClient
) -> None:
    """The API's user of the broker may not."""
    fake.reports.publish(overview_of(replace(ENDED, present=frozenset())))
    fake.states.clear()
    refused = await staff.post("/api/operate/nodes/root-big", json={"action": "remove"})
    assert refused.status_code == 400
    assert "./canopy remove root-big" in refused.json()["error"]["message"]
    assert fake.controls == []


async def test_plain_users_act_on_nothing(member: httpx.AsyncClient, fake: FakeClient) -> None:
    answer = await member.post("/api/operate/nodes/n1", json={"action": "drain"})
    assert answer.status_code == 403
    assert fake.controls == []
