"""What one API process counts while it serves."""

import asyncio
import contextlib
import time
from collections.abc import Iterator

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram
from prometheus_client.core import CounterMetricFamily, Metric
from prometheus_client.registry import Collector

from api.metrics import merge
from broker.client import Client
from broker.metric_messages import ProcessMetrics
from broker.stream import Stream
from broker.wire import Failed, FailureCode, Finished

MODELS = 100  # counted apart; jobs of further ones count as OTHER
OTHER = "other"
NO_ROUTE = "none"  # of requests that were refused before they were routed, or match no address
LAG_EVERY = 0.5  # seconds between two measurements

_NO_FAULTS: dict[FailureCode, str] = {
    "invalid": "invalid",
    "too_long": "invalid",
    "expired": "expired",
    "cancelled": "cancelled",
}
_SHORT = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0)
_LONG = (0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 120.0, 300.0, 900.0, 3600.0)


class HttpInstruments:
    """Requests that reach Django; static files are served before it."""

    def __init__(self, registry: CollectorRegistry) -> None:
        self._requests = Counter(
            "canopy_http_requests",
            "HTTP requests by route and class of status.",
            ["method", "route", "status"],
            registry=registry,
        )
        self._seconds = Histogram(
            "canopy_http_request_duration_seconds",
            "Time until the response began; what is streamed after that does not count.",
            ["route"],
            buckets=_SHORT,
            registry=registry,
        )
        self._in_progress = Gauge(
            "canopy_http_requests_in_progress",
            "Requests whose response has not ended, streams included.",
            registry=registry,
        )
        self._streams = Gauge(
            "canopy_http_streams",
            "Open streams of server-sent events.",
            registry=registry,
        )

    @contextlib.contextmanager
    def request(self) -> Iterator[None]:
        """Counts a request as in progress."""
        with self._in_progress.track_inprogress():
            yield

    @contextlib.contextmanager
    def stream(self) -> Iterator[None]:
        """Counts an open stream."""
        with self._streams.track_inprogress():
            yield

    def answered(self, method: str, route: str, status: int, seconds: float) -> None:
        """A response began. `route`: its template in urls.py."""
        self._requests.labels(method_label(method), route, f"{status // 100}xx").inc()
        self._seconds.labels(route).observe(seconds)


class JobInstruments:
    """Jobs that this process submits and reads."""

    def __init__(self, registry: CollectorRegistry) -> None:
        self._models: set[str] = set()
        self._submitted = Counter(
            "canopy_jobs_submitted",
            "Jobs that the broker took.",
            ["model"],
            registry=registry,
        )
        self._ended = Counter(
            "canopy_jobs_ended",
            "Jobs by how they ended: finished, cancelled, invalid, expired or failed.",
            ["model", "outcome"],
            registry=registry,
        )
        self._prompt_tokens = Counter(
            "canopy_prompt_tokens",
            "Tokens in the prompts of jobs that finished.",
            ["model"],
            registry=registry,
        )
        self._completion_tokens = Counter(
            "canopy_completion_tokens",
            "Tokens that readers received, also of answers that did not finish.",
            ["model"],
            registry=registry,
        )
        self._wait = self._histogram(
            registry, "canopy_job_wait_seconds", "From a job's submission to the start of its run."
        )
        self._first_token = self._histogram(
            registry, "canopy_job_first_token_seconds", "From a job's submission to its first text."
        )
        self._duration = self._histogram(
            registry, "canopy_job_duration_seconds", "From a job's submission to its last token."
        )

    @staticmethod
    def _histogram(registry: CollectorRegistry, name: str, text: str) -> Histogram:
        return Histogram(name, text, ["model"], buckets=_LONG, registry=registry)

    def submitted(self, stream: Stream) -> None:
        """The broker took the stream's job."""
        self._submitted.labels(self._model(stream)).inc()

    def closed(self, stream: Stream) -> None:
        """The stream's job has ended, or its reader left."""
        model = self._model(stream)
        self._ended.labels(model, outcome(stream)).inc()
        received = stream.tokens - len(stream.job.delivered_ids)
        self._completion_tokens.labels(model).inc(max(0, received))
        if isinstance(stream.end, Finished):
            self._prompt_tokens.labels(model).inc(stream.end.prompt_tokens)
        if stream.began is not None:
            self._wait.labels(model).observe(stream.began - stream.opened)
        if stream.first_text is not None:
            self._first_token.labels(model).observe(stream.first_text - stream.opened)
        if outcome(stream) == "finished":
            self._duration.labels(model).observe(time.monotonic() - stream.opened)

    def _model(self, stream: Stream) -> str:
        """The label of the job's model. Only models that have a tree come so far."""
        model = stream.job.model
        if model not in self._models:
            if len(self._models) >= MODELS:
                return OTHER
            self._models.add(model)
        return model


def outcome(stream: Stream) -> str:
    """How a closed stream's job ended: `failed` is a fault of the service, others are not."""
    if isinstance(stream.end, Failed):
        return _NO_FAULTS.get(stream.end.code, "failed")
    if stream.end is None or stream.end.reason == "cancelled":
        return "cancelled"
    return "finished"


class RefusedFrames(Collector):
    """Frames that were not believed, as the client counts them."""

    def __init__(self) -> None:
        self._client: Client | None = None

    def of(self, client: Client) -> None:
        """Shows that client's count from now on."""
        self._client = client

    def collect(self) -> Iterator[Metric]:
        """One counter, once there is a client."""
        if self._client is not None:
            text = "Frames dropped because their sender was not given the job."
            yield CounterMetricFamily(
                "canopy_refused_frames", text, value=self._client.refused_frames
            )


class Instruments:
    """All instruments of the process, which people know by `name`."""

    def __init__(self, name: str) -> None:
        self._name = name
        self.registry = CollectorRegistry()
        self.started = time.time()
        self.http = HttpInstruments(self.registry)
        self.jobs = JobInstruments(self.registry)
        self.refused_frames = RefusedFrames()
        self.registry.register(self.refused_frames)
        self._lag = Histogram(
            "canopy_event_loop_lag_seconds",
            "How late the event loop woke up a timer; two samples a second and process.",
            buckets=_SHORT,
            registry=self.registry,
        )

    def of_process(self, process: str) -> ProcessMetrics:
        """Everything counted so far. `process`: this one's id in the broker."""
        return ProcessMetrics(
            process=process,
            name=self._name,
            started=self.started,
            families=merge.families(self.registry),
        )

    async def measure_lag(self) -> None:
        """Measures how long the event loop keeps a timer waiting. Never ends."""
        loop = asyncio.get_running_loop()
        while True:
            due = loop.time() + LAG_EVERY
            await asyncio.sleep(LAG_EVERY)
            self._lag.observe(max(0.0, loop.time() - due))


def method_label(method: str) -> str:
    """The method as a label: anybody may send any word."""
    if method in {"GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS"}:
        return method
    return OTHER
