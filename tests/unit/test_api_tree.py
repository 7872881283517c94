"""The dashboard's tree: the pure view, its endpoints, its stream."""

import asyncio
import dataclasses
import json
from collections.abc import AsyncIterator
from typing import Any

import httpx
import pytest

from api.context import app
from api.tree.patches import TIMED, difference, is_empty
from broker.management import Edges
from broker.operator_messages import Binding, BrokerOverview, QueueFigures
from broker.tree import tree
from broker.wire import Drain, Resume
from tests.unit.api_site import FakeClient, node_state, until
from topology import names

EDGES = Edges(
    roots={"root": "tiny", "root-big": "big"},
    parents={"n1": "root", "n2": "root", "n3": "n1"},
    present=frozenset({"root", "root-big", "n1", "n2"}),
    registered=frozenset({"root", "root-big", "n1", "n2", "n3", "stray"}),
)


def by_name(found: dict[str, Any]) -> dict[str, dict[str, Any]]:
    """The nodes of a tree by name."""
    return {node["name"]: node for node in found["nodes"]}


def test_bindings_decide_who_hangs_where() -> None:
    states = {
        "root": node_state("root", engine="none", slots=0, parent=None),
        "n1": node_state("n1", parent="elsewhere", held=2, started=90.0, sent=99.0, status="busy"),
        "n3": node_state("n3", status="busy"),
    }
    drawn = tree(EDGES, states, {"canopy.node.n1": 3, "canopy.node.n3": 7}, now=100.0)
    assert drawn["roots"] == ["root", "root-big"]
    assert drawn["at"] == "1970-01-01T00:01:40+00:00"
    assert [node["name"] for node in drawn["nodes"]] == [
        "root",
        "root-big",
        "n1",
        "n2",
        "n3",
        "stray",
    ]
    nodes = by_name(drawn)
    assert nodes["root"]["children"] == ["n1", "n2"]
    assert (nodes["n1"]["parent"], nodes["n1"]["children"]) == ("root", ["n3"])
    assert (nodes["n1"]["depth"], nodes["n1"]["queued"]) == (3, 5)
    assert (nodes["n1"]["uptime"], nodes["n1"]["seen"]) == (10.0, 1.0)
    assert (nodes["n1"]["state"], nodes["n3"]["state"], nodes["stray"]["state"]) == (
        "busy",
        "down",
        "down",
    )
    assert (nodes["n2"]["state"], nodes["n2"]["model"]) == ("starting", "tiny")
    assert (nodes["root-big"]["model"], nodes["stray"]["parent"]) == ("big", None)
    assert {frozenset(node) for node in drawn["nodes"]} == {frozenset(nodes["n1"])}


def test_a_loop_in_repair_is_drawn_once() -> None:
    edges = Edges(
        roots={}, parents={"a": "b", "b": "a"}, present=frozenset(), registered=frozenset()
    )
    assert [node["name"] for node in tree(edges, {}, {}, now=0.0)["nodes"]] == ["a", "b"]


def test_time_alone_is_no_change() -> None:
    states = {"n1": node_state("n1", started=0.0, sent=0.0)}
    former = tree(EDGES, states, {}, now=1.0)
    assert is_empty(difference(former, tree(EDGES, states, {}, now=5.0)))


def test_a_patch_makes_the_former_tree_the_latest() -> None:
    former = tree(EDGES, {"n1": node_state("n1", started=0.0, sent=0.0)}, {}, now=1.0)
    states = {"n1": node_state("n1", running=1, status="busy", started=0.0, sent=2.0)}
    edges = dataclasses.replace(EDGES, parents={"n1": "root", "n2": "n1", "n4": "n1"})
    latest = tree(edges, states, {}, now=2.0)
    patch = json.loads(json.dumps(difference(former, latest)))
    assert patch["nodes"].keys() == {"root", "n1", "n2", "n3", "n4"}
    assert patch["nodes"]["root"].keys() == {"children", *TIMED}
    known = by_name(former)
    nodes = [{**known.get(name, {}), **patch["nodes"].get(name, {})} for name in patch["order"]]
    assert {**former, **patch, "nodes": nodes}.items() >= latest.items()


def overview_of(edges: Edges) -> BrokerOverview:
    """What the recorder reports of a broker with these edges."""
    queues = [names.node(name) for name in edges.registered]
    queues += [names.inbox(name) for name in edges.present]
    bindings = [
        Binding(source=names.JOBS_EXCHANGE, destination=names.node(root), key=model)
        for root, model in edges.roots.items()
    ]
    bindings += [
        Binding(source=names.node(parent), destination=names.node(child), key=child)
        for child, parent in edges.parents.items()
    ]
    return BrokerOverview(
        process="api-2",
        queues=tuple(QueueFigures(name=queue) for queue in queues),
        bindings=tuple(bindings),
    )


@pytest.fixture
def bindings(fake: FakeClient) -> None:
    """The recorder has reported EDGES."""
    fake.reports.publish(overview_of(EDGES))


async def test_the_tree_is_for_staff(
    staff: httpx.AsyncClient, member: httpx.AsyncClient, bindings: None
) -> None:
    found = await staff.get("/api/tree")
    assert by_name(found.json())["n1"]["slots"] == 2
    for path in ("/api/tree", "/api/tree/stream"):
        assert (await member.get(path)).status_code == 403
    assert (await member.post("/api/tree/nodes/n1/drain")).status_code == 403


async def test_the_tree_tells_how_long_jobs_waited(
    staff: httpx.AsyncClient, fake: FakeClient, bindings: None
) -> None:
    fake.change(node_state("root", engine="none", slots=0, waited=4.5, wait_error=0.5))
    nodes = by_name((await staff.get("/api/tree")).json())
    assert (nodes["root"]["waited"], nodes["root"]["wait_error"]) == (4.5, 0.5)
    assert [nodes[name]["reused_tokens"] for name in ("n1", "n3")] == [0, 0]
    assert (nodes["n1"]["waited"], nodes["n3"]["wait_error"]) == (
        0.0,
        0.0,
    )  # nobody waited; not heard of


async def test_without_management_the_tree_is_unavailable(staff: httpx.AsyncClient) -> None:
    answer = await staff.get("/api/tree")
    assert answer.status_code == 503
    assert "CANOPY_MANAGEMENT_URL" in answer.json()["error"]["message"]


async def test_drain_and_resume(staff: httpx.AsyncClient, fake: FakeClient) -> None:
    assert (await staff.post("/api/tree/nodes/n1/drain")).status_code == 202
    assert (await staff.post("/api/tree/nodes/n1/resume")).status_code == 202
    assert fake.controls == [("n1", Drain()), ("n1", Resume())]
    assert (await staff.post("/api/tree/nodes/nobody/drain")).status_code == 404
    fake.states["root"] = node_state("root", parent=None)
    assert (await staff.post("/api/tree/nodes/root/drain")).status_code == 400, "the entrance"
    assert "root" not in [name for name, _ in fake.controls]


async def test_the_stream_tells_changes(
    live: str, staff: httpx.AsyncClient, fake: FakeClient, bindings: None
) -> None:
    cookies = dict(staff.cookies.items())
    async with (
        asyncio.timeout(4),
        httpx.AsyncClient(base_url=live, cookies=cookies) as page,
        page.stream("GET", "/api/tree/stream") as stream,
    ):
        lines = (line async for line in stream.aiter_lines() if line.startswith("data: "))
        assert by_name(json.loads((await anext(lines))[6:]))["n1"]["running"] == 0
        await asyncio.sleep(0.05)
        fake.change(node_state("n1", running=1))
        assert by_name(json.loads((await anext(lines))[6:]))["n1"]["running"] == 1
    await until(lambda: app().tree._reader is None)  # nobody watches: nothing is read


async def test_the_stream_of_patches(
    live: str, staff: httpx.AsyncClient, fake: FakeClient, bindings: None
) -> None:
    cookies = dict(staff.cookies.items())
    async with (
        asyncio.timeout(4),
        httpx.AsyncClient(base_url=live, cookies=cookies) as page,
        page.stream("GET", "/api/tree/stream?patches=true") as stream,
    ):
        lines = stream.aiter_lines()
        assert await next_event(lines) == ("trend", [])
        name, whole = await next_event(lines)
        assert (name, by_name(whole)["n1"]["running"]) == ("tree", 0)
        fake.change(node_state("n1", running=1))
        name, patch = await next_event(lines)
        assert (name, patch["nodes"]["n1"]["running"]) == ("patch", 1)
        assert patch["nodes"].keys() == {"n1"}
        assert patch["summary"]["total"]["running"] == 1


async def next_event(lines: AsyncIterator[str]) -> tuple[str, Any]:
    """The name and the payload of the stream's next event."""
    name = ""
    async for line in lines:
        if line.startswith("event: "):
            name = line.removeprefix("event: ")
        elif line.startswith("data: "):
            return name, json.loads(line.removeprefix("data: "))
    raise AssertionError("the stream has ended")
