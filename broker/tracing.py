"""Traces across processes: spans, and the W3C `traceparent` that joins them in messages.

Without OpenTelemetry's own environment variables nothing of it is imported, every span is NO_SPAN
and a job's traceparent stays as it came. Spans have explicit parents, as a node holds many jobs in
one task.
"""

import re
from collections.abc import Mapping, Sequence
from contextvars import ContextVar
from typing import Literal, Protocol

ENDPOINTS = ("OTEL_EXPORTER_OTLP_ENDPOINT", "OTEL_EXPORTER_OTLP_TRACES_ENDPOINT")
# version 00, trace id, span id, flags; neither id is all zeros
_TRACEPARENT = re.compile(r"00-(?!0{32})[0-9a-f]{32}-(?!0{16})[0-9a-f]{16}-[0-9a-f]{2}")

Kind = Literal["server", "producer", "consumer", "internal"]
Value = str | int | float | bool | Sequence[str]

# The span in which the current task works; for log lines, and for what it publishes.
current: ContextVar[str] = ContextVar("traceparent", default="")


class Span(Protocol):
    """One piece of work, from its making to `end`."""

    traceparent: str  # of what follows from it; "" if nothing is traced

    def rename(self, name: str) -> None:
        """The name is known better now."""

    def set(self, **attributes: Value) -> None:
        """Adds attributes. A `__` in a name stands for a dot: `gen_ai__usage__input_tokens`."""

    def fail(self, reason: str) -> None:
        """It ends with an error."""

    def end(self) -> None:
        """It has ended; only the first call counts."""


class Tracer(Protocol):
    """Makes spans."""

    enabled: bool

    def start(self, name: str, kind: Kind, parent: str = "", **attributes: Value) -> Span:
        """A span below `parent`, a traceparent that may come from anybody; a new trace without."""

    def close(self, seconds: float) -> None:
        """Sends what has ended, for so long at most. Blocks."""


class _NoSpan:
    traceparent = ""

    def rename(self, name: str) -> None:
        """Nothing is traced."""

    def set(self, **attributes: Value) -> None:
        """Nothing is traced."""

    def fail(self, reason: str) -> None:
        """Nothing is traced."""

    def end(self) -> None:
        """Nothing is traced."""


class _NoTracer:
    enabled = False

    def start(self, name: str, kind: Kind, parent: str = "", **attributes: Value) -> Span:
        return NO_SPAN

    def close(self, seconds: float) -> None:
        """Nothing is traced."""


NO_SPAN: Span = _NoSpan()
NO_TRACER: Tracer = _NoTracer()


def is_enabled(environ: Mapping[str, str]) -> bool:
    """True if the environment names a collector and does not turn traces off."""
    if environ.get("OTEL_SDK_DISABLED", "").strip().lower() == "true":
        return False
    if environ.get("OTEL_TRACES_EXPORTER", "otlp").strip().lower() not in ("", "otlp"):
        return False
    return any(environ.get(name) for name in ENDPOINTS)


def make_tracer(service: str, instance: str, environ: Mapping[str, str]) -> Tracer:
    """The tracer of this process. `service`: its name, unless OTEL_SERVICE_NAME is set."""
    if not is_enabled(environ):
        return NO_TRACER
    from broker.otel import OtelTracer

    return OtelTracer(service, instance, environ)


def is_traceparent(text: str) -> bool:
    """True for a traceparent in W3C's format."""
    return _TRACEPARENT.fullmatch(text) is not None


def trace_id(traceparent: str) -> str:
    """The id of the trace; "" without one."""
    return traceparent[3:35]
