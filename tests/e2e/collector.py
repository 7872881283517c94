"""A collector of OpenTelemetry's traces, as small as a test needs it."""

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import (
    ExportTraceServiceRequest,
    ExportTraceServiceResponse,
)


@dataclass(frozen=True)
class Span:
    """One span as it arrived."""

    name: str
    service: str
    trace: str
    span: str
    parent: str
    attributes: dict[str, Any]


class Collector:
    """Takes OTLP over HTTP at `url`."""

    def __init__(self) -> None:
        self._spans: list[Span] = []
        self._arrival = threading.Condition()
        self.url = ""

    def trace_with(self, name: str, among: int, seconds: float = 20.0) -> list[Span]:
        """The spans of the trace that has a span of this name, once it has `among` of them."""
        with self._arrival:
            complete = self._arrival.wait_for(
                lambda: len(self._trace_of(name)) >= among, timeout=seconds
            )
            names = sorted(span.name for span in self._spans)
            assert complete, f"no such trace; spans: {names}"
            return self._trace_of(name)

    def _trace_of(self, name: str) -> list[Span]:
        traces = [span.trace for span in self._spans if span.name == name]
        if not traces:
            return []
        return [span for span in self._spans if span.trace == traces[-1]]

    def take(self, body: bytes) -> None:
        """A request's body."""
        request = ExportTraceServiceRequest.FromString(body)
        spans = []
        for group in request.resource_spans:
            service = _values(group.resource.attributes)["service.name"]
            for scope in group.scope_spans:
                spans += [_span(service, span) for span in scope.spans]
        with self._arrival:
            self._spans += spans
            self._arrival.notify_all()


def _span(service: str, span: Any) -> Span:
    return Span(
        name=span.name,
        service=service,
        trace=span.trace_id.hex(),
        span=span.span_id.hex(),
        parent=span.parent_span_id.hex(),
        attributes=_values(span.attributes),
    )


def _values(attributes: Any) -> dict[str, Any]:
    values = {}
    for attribute in attributes:
        kind = attribute.value.WhichOneof("value")
        values[attribute.key] = getattr(attribute.value, kind) if kind else None
    return values


@contextmanager
def collecting() -> Iterator[Collector]:
    """A collector on a port of its own."""
    collector = Collector()

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            assert self.path == "/v1/traces"
            collector.take(self.rfile.read(int(self.headers["Content-Length"])))
            self.send_response(200)
            self.send_header("Content-Type", "application/x-protobuf")
            self.end_headers()
            self.wfile.write(ExportTraceServiceResponse().SerializeToString())

        def log_message(self, *_: Any) -> None:
            """Nothing."""

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever, name="collector")
    thread.start()
    collector.url = f"http://127.0.0.1:{server.server_port}"
    try:
        yield collector
    finally:
        server.shutdown()
        thread.join()
        server.server_close()
