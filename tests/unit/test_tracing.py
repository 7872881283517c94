"""Traces: one span follows from another, through messages, nodes, restarts and other releases."""

import json
import subprocess
import sys
from collections.abc import Iterator

import httpx
import pytest
from opentelemetry.sdk.trace import ReadableSpan
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter

from api.accounts.models import User
from broker import tracing
from broker.otel import OtelTracer
from broker.tracing import NO_TRACER, is_traceparent, make_tracer
from cli.home import REPOSITORY
from tests.unit.api_site import FakeClient, make_user
from tests.unit.cluster import Cluster, read, until

COLLECTOR = {"OTEL_EXPORTER_OTLP_ENDPOINT": "http://127.0.0.1:1"}
PARENT = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01"


class Collected:
    """What a tracer has sent."""

    def __init__(self) -> None:
        self._exporter = InMemorySpanExporter()
        self.tracer = OtelTracer("canopy-test", "test", {}, self._exporter)

    def spans(self) -> list[ReadableSpan]:
        assert self.tracer._provider.force_flush()
        return list(self._exporter.get_finished_spans())

    def named(self, name: str) -> ReadableSpan:
        [span] = [span for span in self.spans() if span.name == name]
        return span


@pytest.fixture
def collected() -> Iterator[Collected]:
    kept = Collected()
    yield kept
    kept.tracer.close(2.0)


def parent_of(span: ReadableSpan, spans: list[ReadableSpan]) -> str:
    """The name of the span's parent among these; "" if it is elsewhere or there is none."""
    if span.parent is None:
        return ""
    names = {other.context.span_id: other.name for other in spans}
    return names.get(span.parent.span_id, "")


@pytest.mark.parametrize(
    ("text", "valid"),
    [
        (PARENT, True),
        ("", False),
        (PARENT.replace("00-", "01-", 1), False),
        (PARENT.upper(), False),
        (PARENT + "0", False),
        ("00-" + "0" * 32 + "-00f067aa0ba902b7-01", False),
        ("00-4bf92f3577b34da6a3ce929d0e0e4736-" + "0" * 16 + "-01", False),
    ],
)
def test_only_w3cs_form_is_a_traceparent(text: str, valid: bool) -> None:
    assert is_traceparent(text) is valid


@pytest.mark.parametrize(
    ("environ", "enabled"),
    [
        ({}, False),
        (COLLECTOR, True),
        ({"OTEL_EXPORTER_OTLP_TRACES_ENDPOINT": "http://x"}, True),
        ({**COLLECTOR, "OTEL_SDK_DISABLED": "true"}, False),
        ({**COLLECTOR, "OTEL_TRACES_EXPORTER": "none"}, False),
        ({**COLLECTOR, "OTEL_TRACES_EXPORTER": "otlp"}, True),
        ({"OTEL_EXPORTER_OTLP_ENDPOINT": ""}, False),
    ],
)
def test_the_standard_variables_turn_traces_on(environ: dict[str, str], enabled: bool) -> None:
    assert tracing.is_enabled(environ) is enabled
    if not enabled:
        assert make_tracer("canopy-api", "api", environ) is NO_TRACER


@pytest.mark.parametrize("program", ["worker.__main__", "api.server.asgi"])
def test_without_them_nothing_of_opentelemetry_is_imported(program: str) -> None:
    script = f"import sys, {program}; print([n for n in sys.modules if 'opentelemetry' in n])"
    finished = subprocess.run(
        [sys.executable, "-c", script],
        cwd=REPOSITORY,
        capture_output=True,
        text=True,
        timeout=60,
        check=True,
    )
    assert finished.stdout.strip() == "[]"


async def test_each_hop_has_spans_that_follow_from_one_another(collected: Collected) -> None:
    async with Cluster() as cluster:
        await cluster.add("root", tracer=collected.tracer)
        await cluster.add("n1", "root", tracer=collected.tracer)
        await cluster.add("n2", "n1", tracer=collected.tracer)
        first = await cluster.ask("a")
        await until(lambda: cluster.where("a") == "n1")
        second = await cluster.ask("b", traceparent=PARENT)
        await until(lambda: cluster.where("b") == "n2")
        for name, node in (("b", "n2"), ("a", "n1")):
            cluster.engine(node).say(name, "hello")
            cluster.engine(node).finish(name)
        for stream in (first, second):
            await read(stream)
        await until(lambda: not cluster.sessions["root"].unsettled)
    trace = int(PARENT[3:35], 16)
    spans = [span for span in collected.spans() if span.context.trace_id == trace]
    parents = {span.name: parent_of(span, spans) for span in spans}
    assert parents == {
        "process canopy.node.root": "",
        "send canopy.node.n1": "process canopy.node.root",
        "process canopy.node.n1": "send canopy.node.n1",
        "send canopy.node.n2": "process canopy.node.n1",
        "process canopy.node.n2": "send canopy.node.n2",
        "chat m": "process canopy.node.n2",
    }
    [top] = [span for span in spans if span.name == "process canopy.node.root"]
    assert top.parent.span_id == int(PARENT[36:52], 16)
    [engine] = [span for span in spans if span.name == "chat m"]
    expected = {
        "gen_ai.operation.name": "chat",
        "gen_ai.provider.name": "canopy",
        "gen_ai.request.model": "m",
        "gen_ai.usage.input_tokens": 1,
        "gen_ai.usage.output_tokens": 1,
        "gen_ai.response.finish_reasons": ("stop",),
        "gen_ai.response.id": "b",
    }
    assert expected.items() <= dict(engine.attributes).items()
    assert engine.attributes["gen_ai.response.time_to_first_chunk"] > 0


async def test_an_untraced_node_passes_the_trace_on(collected: Collected) -> None:
    async with Cluster() as cluster:
        await cluster.add("root")
        await cluster.add("n1", "root", tracer=collected.tracer)
        stream = await cluster.ask("a", traceparent=PARENT)
        await until(lambda: cluster.where("a") == "n1")
        cluster.engine("n1").finish("a")
        await read(stream)
        await until(lambda: not cluster.sessions["n1"].unsettled)
    span = collected.named("process canopy.node.n1")
    assert span.parent.span_id == int(PARENT[36:52], 16)


async def test_a_job_that_goes_on_elsewhere_stays_in_its_trace(collected: Collected) -> None:
    async with Cluster() as cluster:
        await cluster.add("root", tracer=collected.tracer)
        await cluster.add("n1", "root", tracer=collected.tracer)
        stream = await cluster.ask("a", traceparent=PARENT)
        await until(lambda: cluster.where("a") == "n1")
        await cluster.add("n2", "root", tracer=collected.tracer)
        cluster.engine("n1").fail("a")
        await until(lambda: cluster.where("a") == "n2")
        cluster.engine("n2").finish("a")
        await read(stream)
        await until(lambda: not cluster.sessions["n2"].unsettled)
    spans = collected.spans()
    assert {span.context.trace_id for span in spans} == {int(PARENT[3:35], 16)}
    runs = [span for span in spans if span.name == "chat m"]
    assert [span.attributes.get("error.type") for span in runs] == ["interrupted", None]
    assert [span.status.is_ok for span in runs] == [False, True]


async def test_a_foreign_traceparent_harms_nothing(collected: Collected) -> None:
    async with Cluster() as cluster:
        await cluster.add("root", tracer=collected.tracer)
        await cluster.add("n1", "root", tracer=collected.tracer)
        stream = await cluster.ask("a", traceparent="not one at all")
        await until(lambda: cluster.where("a") == "n1")
        cluster.engine("n1").finish("a")
        await read(stream)
        await until(lambda: not cluster.sessions["n1"].unsettled)
    assert collected.named("process canopy.node.root").parent is None


# ---- HTTP


@pytest.fixture
def traced_api(fake: FakeClient, collected: Collected) -> Iterator[Collected]:
    """The application with a tracer."""
    from api.context import app
    from api.server.asgi import application

    submitter = app().submitter
    application.handler._observer.tracer = submitter._tracer = collected.tracer
    yield collected
    application.handler._observer.tracer = submitter._tracer = NO_TRACER


async def test_a_request_is_a_server_span_below_its_callers(
    program: httpx.AsyncClient, traced_api: Collected, fake: FakeClient
) -> None:
    body = {"model": "tiny", "prompt": "one"}
    answer = await program.post("/v1/completions", json=body, headers={"traceparent": PARENT})
    assert answer.status_code == 200
    server = traced_api.named("POST /v1/completions")
    assert server.kind.name == "SERVER"
    assert server.parent.span_id == int(PARENT[36:52], 16)
    assert server.attributes["http.response.status_code"] == 200
    sent = traced_api.named("send canopy.jobs")
    assert sent.parent.span_id == server.context.span_id
    assert sent.attributes["messaging.message.id"] == answer.headers["X-Request-Id"]
    [job] = fake.jobs
    assert int(job.traceparent[36:52], 16) == sent.context.span_id


async def test_no_path_is_recorded_and_no_probe_is_traced(
    web: httpx.AsyncClient, traced_api: Collected
) -> None:
    await web.get("/healthz")
    await web.get("/s/a-secret-of-a-shared-conversation")
    [span] = traced_api.spans()
    assert span.name == "GET /s/<str:token>"
    assert "secret" not in json.dumps(dict(span.attributes))


async def test_a_stream_without_end_is_a_short_span(
    live: str, traced_api: Collected, user: User
) -> None:
    from asgiref.sync import sync_to_async

    from api.accounts import keys

    key = await sync_to_async(keys.create)(await make_user())
    headers = {"Authorization": f"Bearer {key}"}
    async with (
        httpx.AsyncClient(base_url=live, headers=headers) as client,
        client.stream("GET", "/api/events") as events,
    ):
        await anext(events.aiter_lines())
        assert traced_api.named("GET /api/events").status.is_ok
