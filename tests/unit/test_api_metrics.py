"""/metrics: who may read it, that parsers accept it, and that its numbers are right."""

import asyncio
import json
import re
import time
from collections.abc import AsyncIterator
from dataclasses import replace
from typing import Any

import httpx
import pytest
import pytest_asyncio
from asgiref.sync import sync_to_async
from prometheus_client.openmetrics.parser import text_string_to_metric_families as parse_open
from prometheus_client.parser import text_string_to_metric_families as parse

from api import environment
from api.accounts import keys
from api.accounts.models import User
from api.environment import BadEnvironment
from api.metrics import depths, instruments, merge
from api.metrics import endpoints as scrape
from api.metrics.instruments import Instruments
from api.metrics.tree import Moment, TreeCollector
from broker import metrics_exchange
from broker.memory import MemoryBroker
from broker.metric_messages import ProcessMetrics
from broker.metrics_exchange import MetricsExchange
from broker.node_state import NodeState
from broker.shared_objects import declare_shared
from broker.wire import Failed
from cli.home import REPOSITORY
from tests.unit.api_site import FakeClient, beginning, browser, make_user, node_state, until
from topology import names

DASHBOARD = REPOSITORY / "docs" / "grafana" / "canopy.json"
TOKEN = "a secret of these tests"
Samples = dict[tuple[str, tuple[tuple[str, str], ...]], float]


def samples(text: str) -> Samples:
    """Every sample by its name and labels, without the label `process`."""
    scraped: Samples = {}
    for family in parse(text):
        for sample in family.samples:
            labels = {name: value for name, value in sample.labels.items() if name != "process"}
            scraped[sample.name, tuple(sorted(labels.items()))] = sample.value
    return scraped


def of(scraped: Samples, name: str, **labels: str) -> float:
    return scraped.get((name, tuple(sorted(labels.items()))), 0.0)


@pytest_asyncio.fixture
async def scraper(
    fake: FakeClient, monkeypatch: pytest.MonkeyPatch
) -> AsyncIterator[httpx.AsyncClient]:
    """A program on this machine."""
    monkeypatch.setattr(depths, "DEPTHS_SECONDS", 0.0)
    async with browser() as client:
        yield client


async def read(client: httpx.AsyncClient) -> Samples:
    answer = await client.get("/metrics")
    assert answer.status_code == 200, answer.text
    assert answer.headers["Content-Type"].startswith("text/plain; version=0.0.4")
    return samples(answer.text)


# ---- access


async def key_of(user: User) -> dict[str, str]:
    return {"Authorization": f"Bearer {await sync_to_async(keys.create)(user)}"}


@pytest.mark.parametrize("header", ["X-Forwarded-For", "X-Forwarded-Proto", "Forwarded", "Via"])
async def test_what_a_proxy_passes_on_is_not_local(scraper: httpx.AsyncClient, header: str) -> None:
    assert (await scraper.get("/metrics")).status_code == 200
    assert (await scraper.get("/metrics", headers={header: "10.0.0.1"})).status_code == 401


async def test_from_elsewhere_it_takes_staff_or_the_token(
    scraper: httpx.AsyncClient, user: User, monkeypatch: pytest.MonkeyPatch
) -> None:
    env = replace(scrape.ENV, public_url="https://here", metrics_token=TOKEN)
    monkeypatch.setattr(scrape, "ENV", env)
    operator = await key_of(await make_user(is_staff=True))
    expected = [
        ({}, 401),
        (await key_of(user), 403),
        (operator, 200),
        ({"Authorization": f"Bearer {TOKEN}"}, 200),
        ({"Authorization": f"bearer {TOKEN}"}, 200),
        ({"Authorization": f"Bearer {TOKEN}x"}, 401),
        ({"Authorization": f"Basic {TOKEN}"}, 401),
        ({"Authorization": "Bearer "}, 401),
    ]
    for headers, status in expected:
        assert (await scraper.get("/metrics", headers=headers)).status_code == status, headers


@pytest.mark.parametrize("token", ["short", "x" * 20 + " y", "ä" * 20])
def test_a_weak_token_is_refused(token: str) -> None:
    with pytest.raises(BadEnvironment, match="CANOPY_METRICS_TOKEN"):
        environment.read({"CANOPY_METRICS_TOKEN": token})


# ---- HTTP and jobs


async def test_requests_are_counted_by_the_template_of_their_address(
    scraper: httpx.AsyncClient, member: httpx.AsyncClient
) -> None:
    before = await read(scraper)
    for number in range(3):
        assert (await member.get(f"/api/conversations/{900000 + number}")).status_code == 404
    assert (await member.get("/nothing/here")).status_code == 404
    assert (await member.request("BREW", "/healthz")).status_code in (200, 405)
    after = await read(scraper)
    routes = {dict(labels).get("route", "") for name, labels in after if "http_requests" in name}
    assert not any("900000" in route or "nothing" in route for route in routes)
    [route] = [route for route in routes if re.fullmatch(r"/api/conversations/<[^/]+>", route)]
    label = {"method": "GET", "route": route, "status": "4xx"}
    name = "canopy_http_requests_total"
    assert of(after, name, **label) - of(before, name, **label) == 3
    unknown = {"method": "GET", "route": "none", "status": "4xx"}
    assert of(after, name, **unknown) - of(before, name, **unknown) == 1
    count = "canopy_http_request_duration_seconds_count"
    assert of(after, count, route=route) - of(before, count, route=route) == 3
    assert not any(dict(labels).get("method") == "BREW" for _, labels in after)


async def test_jobs_and_tokens_are_counted_by_model(
    scraper: httpx.AsyncClient, program: httpx.AsyncClient, fake: FakeClient
) -> None:
    before = await read(scraper)
    body = {"model": "tiny", "prompt": "one two three"}
    for _ in range(2):
        assert (await program.post("/v1/completions", json=body)).status_code == 200
    fake.script = lambda job: [Failed(request_id=job.request_id, code="engine", message="broken")]
    assert (await program.post("/v1/completions", json=body)).status_code >= 500
    fake.script = lambda job: [Failed(request_id=job.request_id, code="too_long", message="no")]
    assert (await program.post("/v1/completions", json=body)).status_code == 400
    fake.script = beginning("half an")
    left = asyncio.create_task(program.post("/v1/completions", json=body))
    await until(lambda: len(fake.jobs) == 5)
    left.cancel()
    await asyncio.gather(left, return_exceptions=True)
    await until(lambda: fake.cancelled)
    after = await read(scraper)

    def grown(name: str, **labels: str) -> float:
        return of(after, name, **labels) - of(before, name, **labels)

    assert grown("canopy_jobs_submitted_total", model="tiny") == len(fake.jobs)
    ended = {}
    for outcome in ("finished", "failed", "invalid", "cancelled"):
        ended[outcome] = grown("canopy_jobs_ended_total", model="tiny", outcome=outcome)
    assert ended == {"finished": 2, "failed": 1, "invalid": 1, "cancelled": 1}
    assert grown("canopy_prompt_tokens_total", model="tiny") == 2 * 3
    assert grown("canopy_completion_tokens_total", model="tiny") == 2 * 3 + 1
    assert grown("canopy_job_first_token_seconds_count", model="tiny") == 3
    assert grown("canopy_job_wait_seconds_count", model="tiny") == 2
    assert grown("canopy_job_duration_seconds_count", model="tiny") == 2


async def test_open_streams_are_counted_while_they_are_open(
    live: str, scraper: httpx.AsyncClient, fake: FakeClient
) -> None:
    headers = await key_of(await make_user(is_staff=True))
    async with httpx.AsyncClient(base_url=live, headers=headers) as client:
        async with client.stream("GET", "/api/events") as events:
            lines = events.aiter_lines()  # dropping it would end the stream
            await anext(lines)
            assert of(await read(scraper), "canopy_http_streams") == 1
            assert of(await read(scraper), "canopy_http_requests_in_progress") == 2  # and this one
        async with asyncio.timeout(30):
            while of(await read(scraper), "canopy_http_streams"):  # noqa: ASYNC110
                await asyncio.sleep(0.01)


async def test_the_loops_lag_is_measured(
    scraper: httpx.AsyncClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(instruments, "LAG_EVERY", 0.01)
    own = Instruments("api")
    measuring = asyncio.create_task(own.measure_lag())
    await until(lambda: own.registry.get_sample_value("canopy_event_loop_lag_seconds_count"))
    measuring.cancel()


def test_models_are_bounded() -> None:
    own = Instruments("api").jobs
    for number in range(instruments.MODELS + 5):
        stream: Any = type("S", (), {"job": type("J", (), {"model": f"m{number}"})()})()
        own.submitted(stream)
    assert len(own._models) == instruments.MODELS


# ---- the tree


def tree_of(*states: NodeState) -> dict[str, NodeState]:
    return {state.name: state for state in states}


async def test_the_trees_numbers_are_the_nodes_own(
    scraper: httpx.AsyncClient, fake: FakeClient
) -> None:
    root = node_state("root", parent=None, engine="none", slots=0, held=5, oldest_wait=70.0)
    busy = {"running": 2, "tokens": 900, "received": 9, "finished": 7, "failed": 1}
    fake.states = tree_of(root, node_state("n1", status="busy", **busy))
    fake.queue_depths = {names.node("root"): 3, names.DEAD_QUEUE: 4}
    scraped = await read(scraper)
    assert of(scraped, "canopy_model_waiting_jobs", model="tiny") == 5 + 3
    assert of(scraped, "canopy_model_running_jobs", model="tiny") == 2
    assert of(scraped, "canopy_model_usable_slots", model="tiny") == 2
    assert of(scraped, "canopy_model_oldest_wait_seconds", model="tiny") == pytest.approx(70, abs=1)
    assert of(scraped, "canopy_node_queue_depth", node="root") == 3
    assert of(scraped, "canopy_node_status", node="n1", status="busy") == 1
    for name, value in busy.items():
        total = name if name == "running" else f"{name}_total"
        assert of(scraped, f"canopy_node_{total}", node="n1", model="tiny") == value
    assert of(scraped, "canopy_dead_letters") == 4
    assert of(scraped, "canopy_broker_connected") == 1
    fake.connected = False
    assert of(await read(scraper), "canopy_broker_connected") == 0


def test_a_models_trees_are_added_up() -> None:
    trees = []
    for name, depth in (("root", 3), ("root-b", 4)):
        root = node_state(name, parent=None, engine="none", slots=0, held=depth, oldest_wait=depth)
        trees += [root, node_state(f"{name}-n", parent=name, running=1)]
    drained = node_state("n9", status="drained", parent="root")
    moment = Moment(time.time(), tree_of(*trees, drained), {names.node("root"): 2}, True)
    [sums] = TreeCollector(moment)._sums().values()
    assert (sums["waiting"], sums["running"], sums["usable"]) == (9, 2, 4)
    assert sums["oldest_wait"] == pytest.approx(4, abs=0.5)


def test_a_thousand_nodes_are_shown_and_no_more() -> None:
    states = tree_of(*(node_state(f"n{number}") for number in range(1200)))
    moment = Moment(0.0, states, {}, True)
    [info] = [each for each in TreeCollector(moment).collect() if each.name == "canopy_node_info"]
    assert len(info.samples) == 1000


# ---- several processes


async def exchange(
    broker: MemoryBroker, process: str, name: str, count: int, started: float = 0.0
) -> MetricsExchange:
    """An API process's part that has counted so much."""
    own = Instruments(name)
    own.http.answered("GET", "/", 200, 0.0)
    for _ in range(count - 1):
        own.http.answered("GET", "/", 200, 0.0)
    own.started = started
    part = MetricsExchange(process)
    part.answer_with(lambda: own.of_process(process))
    session = broker.session()
    await declare_shared(session)
    await part.open(session)
    return part


async def test_one_process_answers_for_all(monkeypatch: pytest.MonkeyPatch) -> None:
    broker = MemoryBroker()
    first = await exchange(broker, "a", "api", 3)
    assert await first.gather() == []
    second = await exchange(broker, "b", "api-2", 4)
    await until(lambda: first._others)
    counted = {metrics.name: requests(metrics) for metrics in await first.gather()}
    assert counted == {"api-2": 4.0}
    assert [metrics.name for metrics in await second.gather()] == ["api"]
    second.answer_with(lambda: pytest.fail("it hangs"))
    second._own = None
    monkeypatch.setattr(metrics_exchange, "ANSWER_SECONDS", 0.05)
    assert [metrics.name for metrics in await first.gather()] == ["api-2"], "as last heard"
    monkeypatch.setattr(metrics_exchange, "SILENT_SECONDS", 0.0)
    assert await first.gather() == []


def requests(metrics: ProcessMetrics) -> float:
    [family] = [each for each in metrics.families if each.name == "canopy_http_requests"]
    return sum(sample.value for sample in family.samples)


def test_during_a_handover_the_successor_counts() -> None:
    metrics = [ProcessMetrics(process=p, name="api-2", started=s, families=()) for p, s in ZIP]
    own = ProcessMetrics(process="own", name="api", started=1.0, families=())
    assert [each.process for each in merge.newest(own, metrics)] == ["own", "new"]


ZIP = [("new", 5.0), ("old", 2.0)]


def test_a_merged_answer_says_which_process_counted() -> None:
    several = []
    for name in ("api", "api-2"):
        own = Instruments(name)
        own.http.answered("GET", "/", 200, 0.002)
        several.append(own.of_process(name))
    text = scrape._render(several, Moment(0.0, {}, {}, True), as_openmetrics=True).decode()
    families = {family.name: family for family in parse_open(text)}
    processes = {sample.labels["process"] for sample in families["canopy_http_requests"].samples}
    assert processes == {"api", "api-2"}


# ---- what reads it


async def test_parsers_accept_both_formats(
    scraper: httpx.AsyncClient, program: httpx.AsyncClient
) -> None:
    await program.post("/v1/completions", json={"model": "tiny", "prompt": "one"})
    plain = await scraper.get("/metrics")
    wanted = {"Accept": "application/openmetrics-text;version=1.0.0,text/plain;q=0.5"}
    openmetrics = await scraper.get("/metrics", headers=wanted)
    assert openmetrics.headers["Content-Type"].startswith("application/openmetrics-text")
    names_of = {family.name for family in parse(plain.text)}
    assert {family.name for family in parse_open(openmetrics.text)} == names_of
    for family in parse_open(openmetrics.text):
        assert family.documentation, family.name
        assert re.fullmatch(r"canopy_[a-z_]+", family.name)
        if family.name.endswith("_seconds"):
            assert family.type in ("histogram", "gauge")


async def test_grafanas_dashboard_names_metrics_that_exist(
    scraper: httpx.AsyncClient, program: httpx.AsyncClient, fake: FakeClient
) -> None:
    await program.post("/v1/completions", json={"model": "tiny", "prompt": "one"})
    fake.states["root"] = node_state("root", parent=None, engine="none", slots=0)
    existing: set[str] = set()
    for family in parse((await scraper.get("/metrics")).text):
        existing.update(sample.name for sample in family.samples)
    panels = json.loads(DASHBOARD.read_text())["panels"]
    named: set[str] = set()
    for panel in panels:
        for target in panel.get("targets", ()):
            named.update(re.findall(r"canopy_\w+", target["expr"]))
    assert len(named) > 15
    assert named - existing == set()
