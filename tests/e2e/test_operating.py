"""For machines, on a real instance of three hops: one trace, JSON logs, metrics, users."""

import itertools
import json
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest
from prometheus_client.parser import text_string_to_metric_families as parse

from tests.e2e.collector import Collector, Span, collecting
from tests.e2e.frames import QUIET, SpareTime
from tests.e2e.terminal import Terminal
from tests.instance import WAIT_SECONDS, Instance, environment, jobs, running, total, tree_when

CALLER = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01"
OPTIONS = ["--engine", "echo", "--nodes", "2", "--fanout", "1", "--slots", "1"]

pytestmark = pytest.mark.timeout(240)


@pytest.fixture(scope="module")
def collector() -> Iterator[Collector]:
    with collecting() as collector:
        yield collector


@pytest.fixture(scope="module")
def observed(collector: Collector, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Instance]:
    """root -> n1 -> n2, a slot each; two API processes; traced, and logging everything as JSON."""
    env = {
        "OTEL_EXPORTER_OTLP_ENDPOINT": collector.url,
        "OTEL_BSP_SCHEDULE_DELAY": "100",
        "CANOPY_LOG_FORMAT": "json",
        "CANOPY_LOG_LEVEL": "debug",
        "CANOPY_USER_JOBS": "0",
    }
    options = [*OPTIONS, "--token-delay", "0.02", "--api-processes", "2"]
    with running(tmp_path_factory.mktemp("observed"), *options, env=env) as instance:
        yield instance


@pytest.fixture(scope="module")
def answer(observed: Instance) -> httpx.Response:
    """Of a job that had to pass n1, which was busy, on its way to n2."""
    body = {"model": "echo", "messages": [{"role": "user", "content": "one two three"}]}
    with (
        observed.program(observed.key()) as program,
        jobs(program, 1, 1000),
    ):
        tree_when(program, lambda tree: total(tree, "running") == 1)
        return program.post("/v1/chat/completions", json=body, headers={"traceparent": CALLER})


def test_a_job_of_three_hops_is_one_connected_trace(
    answer: httpx.Response, collector: Collector
) -> None:
    request_id = answer.headers["X-Request-Id"]
    spans = {span.name: span for span in collector.trace_with("process canopy.node.n2", 8)}
    way = [
        "POST /v1/chat/completions",
        "send canopy.jobs",
        "process canopy.node.root",
        "send canopy.node.n1",
        "process canopy.node.n1",
        "send canopy.node.n2",
        "process canopy.node.n2",
        "chat echo",
    ]
    assert set(spans) >= set(way)
    assert spans[way[0]].parent == CALLER[36:52]
    for above, below in itertools.pairwise(way):
        assert spans[below].parent == spans[above].span, below
    assert {span.trace for span in spans.values()} == {CALLER[3:35]}
    assert spans["POST /v1/chat/completions"].service == "canopy-api"
    engine = spans["chat echo"]
    assert engine.service == "canopy-node"
    assert engine.attributes["gen_ai.request.model"] == "echo"
    usage = answer.json()["usage"]
    assert engine.attributes["gen_ai.usage.input_tokens"] == usage["prompt_tokens"]
    assert engine.attributes["gen_ai.usage.output_tokens"] == usage["completion_tokens"] == 3
    assert_request(spans, request_id)


def assert_request(spans: dict[str, Span], request_id: str) -> None:
    """Each span of the broker names the request."""
    for span in spans.values():
        if span.attributes.get("messaging.system"):
            assert span.attributes["messaging.message.id"] == request_id, span.name


def test_each_process_logs_the_request_as_json(answer: httpx.Response, observed: Instance) -> None:
    request_id = answer.headers["X-Request-Id"]
    events: dict[str, set[str]] = {}
    for file in (observed.home / "logs").glob("*.log"):
        for line in json_lines(file):
            if line.get("request_id") == request_id:
                events.setdefault(line["process"], set()).add(line["event"])
    [api] = [name for name in events if name.startswith("api")]
    assert events[api] == {"job submitted", "job ended"}
    assert events["root"] == {"job arrived", "job forwarded"}
    assert events["n1"] == {"job arrived", "job forwarded"}
    assert events["n2"] == {"job arrived", "job runs", "run ended"}


def json_lines(file: Path) -> list[dict[str, str]]:
    """All lines of one of our processes' logs; every one is an object."""
    if not file.name.startswith(("api", "root", "n1", "n2")):
        return []
    lines = [json.loads(line) for line in file.read_text().splitlines()]
    assert lines, file
    for line in lines:
        assert {"event", "level", "timestamp", "process"} <= line.keys(), line
    return lines


def test_one_scrape_counts_what_all_processes_did(
    answer: httpx.Response, observed: Instance
) -> None:
    requests = 8
    before = scrape_at_rest(observed)
    for _ in range(requests):
        with observed.program(observed.key()) as program:  # a new connection for each
            body = {"model": "echo", "prompt": "one two"}
            assert program.post("/v1/completions", json=body).status_code == 200
    after = scrape_at_rest(observed)
    grown = {name: after[name] - before.get(name, 0.0) for name in after}
    assert grown["canopy_jobs_submitted_total"] == requests
    assert grown["canopy_completion_tokens_total"] == 2 * requests
    assert grown["canopy_node_finished_total"] == requests
    assert grown["canopy_node_tokens_total"] == 2 * requests


def scrape_at_rest(instance: Instance) -> dict[str, float]:
    """A scrape that knows the end of every job: nodes publish their counters now and then."""
    deadline = time.monotonic() + WAIT_SECONDS
    sums = scrape(instance)
    while sums["canopy_node_finished_total"] != sums["canopy_jobs_submitted_total"]:
        assert time.monotonic() < deadline, sums
        sums = scrape(instance)
    return sums


def scrape(instance: Instance) -> dict[str, float]:
    """Each metric's sum over its labels."""
    sums: dict[str, float] = {}
    response = httpx.get(f"{instance.url}/metrics", timeout=WAIT_SECONDS)
    assert response.status_code == 200
    processes = set()
    for family in parse(response.text):
        for sample in family.samples:
            sums[sample.name] = sums.get(sample.name, 0.0) + sample.value
            processes.add(sample.labels.get("process"))
    assert {"api", "api-2"} <= processes
    return sums


def test_top_shows_what_the_tree_does(answer: httpx.Response, observed: Instance) -> None:
    with (
        observed.session(observed.login_token()) as staff,
        observed.program(observed.key()) as program,
        jobs(program, 2, 2000),
    ):
        tree_when(staff, lambda tree: total(tree, "running") == 2)
        seen = json.loads(observed.canopy("top", "--once", "--json"))
        tree = json.loads(observed.canopy("tree", "--json"))
    assert [(node["name"], node["level"]) for node in seen["nodes"]] == [
        ("root", 0),
        ("n1", 1),
        ("n2", 2),
    ]
    for node, other in zip(seen["nodes"], tree["nodes"], strict=True):
        for field in ("name", "parent", "model", "slots", "running", "state", "pid", "failed"):
            assert node[field] == other[field], field
    total_seen = seen["total"]
    assert (total_seen["running"], total_seen["usable"], total_seen["waiting"]) == (2, 2, 0)
    assert 20 < total_seen["tokens_per_second"] < 110, "two answers of 50 words a second at most"
    for name in ("n1", "n2"):
        [node] = [node for node in seen["nodes"] if node["name"] == name]
        assert 10 < node["tokens_per_second"] < 60, name
    tree_rate = seen["trees"][0]["tokens_per_second"]
    assert tree_rate == pytest.approx(total_seen["tokens_per_second"], abs=0.2)


def test_top_fills_the_terminal_and_leaves_it_as_it_was(observed: Instance) -> None:
    with Terminal([sys.executable, "-m", "cli", "top"], environment(observed.home)) as terminal:
        terminal.until("n2")
        terminal.until("sort: tree")
        terminal.resize(60, 12)
        terminal.type("s")
        terminal.until("sort: name")
        frame = terminal.frames()[-1]
        assert len(frame) <= 12
        assert max(map(len, frame)) <= 60
        terminal.type("q")
        assert terminal.ended() == 0
        assert terminal.text.rstrip().endswith("\x1b[?1049l"), "the former screen is back"


def test_a_disabled_user_is_out_within_a_second(observed: Instance) -> None:
    made = json.loads(observed.canopy("user", "create", "eve", "--json"))
    assert httpx.get(made["login"]).status_code == 302
    body = {"model": "echo", "prompt": "and so on", "max_tokens": 20_000, "stream": True}
    ended = threading.Event()
    with (
        observed.session(observed.login_token()) as staff,
        observed.program(observed.key("eve")) as program,
    ):

        def read() -> None:
            with program.stream("POST", "/v1/completions", json=body) as stream:
                for _ in stream.iter_lines():
                    pass
            ended.set()

        reader = threading.Thread(target=read)
        reader.start()
        tree_when(staff, lambda tree: total(tree, "running") == 1)
        assert json.loads(observed.canopy("user", "disable", "eve", "--json"))["active"] is False
        disabled_at, spare = time.monotonic(), SpareTime()
        assert ended.wait(WAIT_SECONDS), "its request goes on"
        assert time.monotonic() - disabled_at < 3.0 or spare.share() < QUIET
        tree_when(staff, lambda tree: total(tree, "running") == 0)
        assert program.get("/v1/models").status_code == 401
        reader.join()
    listed = json.loads(observed.canopy("user", "list", "--json"))["users"]
    assert [user["active"] for user in listed if user["name"] == "eve"] == [False]
