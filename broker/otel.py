"""Spans of OpenTelemetry, sent by OTLP over HTTP. Imported only where the environment asks for it.

The SDK reads the standard variables itself: the endpoint, headers and timeouts of the exporter, the
sampler, the limits of queues and attributes. A thread of its own sends; what it cannot send in time
is dropped.
"""

import threading
from collections.abc import Mapping

from opentelemetry import trace
from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
from opentelemetry.sdk.resources import Resource
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import BatchSpanProcessor, SpanExporter
from opentelemetry.trace import NonRecordingSpan, SpanContext, SpanKind, Status, StatusCode
from opentelemetry.trace import Span as SdkSpan

from broker.tracing import Kind, Span, Value, is_traceparent

_KINDS = {
    "server": SpanKind.SERVER,
    "producer": SpanKind.PRODUCER,
    "consumer": SpanKind.CONSUMER,
    "internal": SpanKind.INTERNAL,
}
_SCOPE = "canopy"


class OtelSpan:
    """One span."""

    def __init__(self, span: SdkSpan) -> None:
        self._span = span
        context = span.get_span_context()
        self.traceparent = (
            f"00-{trace.format_trace_id(context.trace_id)}"
            f"-{trace.format_span_id(context.span_id)}-{context.trace_flags:02x}"
        )
        self._ended = False

    def rename(self, name: str) -> None:
        self._span.update_name(name)

    def set(self, **attributes: Value) -> None:
        self._span.set_attributes(dotted(attributes))

    def fail(self, reason: str) -> None:
        self._span.set_status(Status(StatusCode.ERROR, reason))

    def end(self) -> None:
        if not self._ended:
            self._ended = True
            self._span.end()


class OtelTracer:
    """The tracer of one process. `exporter` replaces OTLP in tests."""

    enabled = True

    def __init__(
        self,
        service: str,
        instance: str,
        environ: Mapping[str, str],
        exporter: SpanExporter | None = None,
    ) -> None:
        attributes = {"service.instance.id": instance}
        if not environ.get("OTEL_SERVICE_NAME"):
            attributes["service.name"] = service
        self._provider = TracerProvider(
            resource=Resource.create(attributes), shutdown_on_exit=False
        )
        processor = BatchSpanProcessor(exporter or OTLPSpanExporter())
        self._provider.add_span_processor(processor)
        self._tracer = self._provider.get_tracer(_SCOPE)

    def start(self, name: str, kind: Kind, parent: str = "", **attributes: Value) -> Span:
        context = None
        if is_traceparent(parent):
            context = trace.set_span_in_context(NonRecordingSpan(_remote(parent)))
        else:
            context = trace.set_span_in_context(trace.INVALID_SPAN)
        return OtelSpan(
            self._tracer.start_span(name, context, kind=_KINDS[kind], attributes=dotted(attributes))
        )

    def close(self, seconds: float) -> None:
        closing = threading.Thread(target=self._provider.shutdown, daemon=True, name="traces")
        closing.start()
        closing.join(seconds)


def dotted(attributes: Mapping[str, Value]) -> dict[str, Value]:
    """The attributes under their names in the semantic conventions."""
    return {name.replace("__", "."): value for name, value in attributes.items()}


def _remote(traceparent: str) -> SpanContext:
    _, trace_id, span_id, flags = traceparent.split("-")
    return SpanContext(
        int(trace_id, 16),
        int(span_id, 16),
        is_remote=True,
        trace_flags=trace.TraceFlags(int(flags, 16)),
    )
