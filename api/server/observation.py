"""What is counted and traced of each request that reaches Django."""

import time
from contextlib import ExitStack
from typing import Self

from django.core.handlers.asgi import ASGIRequest
from django.http.response import HttpResponseBase

from api.http.sse import EventStream
from api.metrics.instruments import NO_ROUTE, HttpInstruments, method_label
from broker import tracing
from broker.tracing import NO_SPAN, Span, Tracer

UNTRACED = {"/healthz", "/health", "/readyz", "/metrics"}  # asked all the time, by machines


class Observer:
    """Makes an Observation of each request."""

    def __init__(self, instruments: HttpInstruments, tracer: Tracer) -> None:
        self.instruments = instruments
        self.tracer = tracer

    def refused(self, method: str, status: int) -> None:
        """A request was refused before its body was read."""
        self.instruments.answered(method, NO_ROUTE, status, 0.0)

    def observe(self, request: ASGIRequest) -> "Observation":
        """To be entered while the request is answered."""
        return Observation(self, request)


class Observation:
    """One request, from its body's end to the end of its response."""

    def __init__(self, observer: Observer, request: ASGIRequest) -> None:
        self._observer = observer
        self._request = request
        self._began = time.monotonic()
        self._span: Span = NO_SPAN
        self._open = ExitStack()

    def __enter__(self) -> Self:
        self._open.enter_context(self._observer.instruments.request())
        if self._observer.tracer.enabled and self._request.path_info not in UNTRACED:
            self._span = self._start_span()
            self._open.callback(self._span.end)
            tracing.current.set(self._span.traceparent)  # of this request's task alone
        return self

    def __exit__(self, *_: object) -> None:
        self._open.close()

    def answered(self, response: HttpResponseBase) -> None:
        """The response begins now."""
        method, route, status = self._request.method, route_of(self._request), response.status_code
        seconds = time.monotonic() - self._began
        self._observer.instruments.answered(method, route, status, seconds)
        if isinstance(response, EventStream):
            self._open.enter_context(self._observer.instruments.stream())
        if self._span is NO_SPAN:
            return
        self._span.rename(f"{method_label(method)} {route}")
        self._span.set(http__route=route, http__response__status_code=status)
        if status >= 500:
            self._span.fail(str(status))
        if isinstance(response, EventStream) and response.endless:
            self._span.end()  # it says nothing more until a page is closed

    def _start_span(self) -> Span:
        """The path itself is left out: a shared conversation's is a secret."""
        method = method_label(self._request.method)
        return self._observer.tracer.start(
            method,
            "server",
            self._request.META.get("HTTP_TRACEPARENT", ""),
            http__request__method=method,
            url__scheme=self._request.scheme,
        )


def route_of(request: ASGIRequest) -> str:
    """The template of the address in urls.py."""
    match = request.resolver_match
    if match is None:
        return NO_ROUTE
    return f"/{match.route}"
