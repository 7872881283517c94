"""What is counted of a minute, for each model, node and user. Pure."""

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Literal

from api.operate.history.histogram import Histogram, bucket_of

Kind = Literal["model", "node", "user"]
KINDS: tuple[Kind, ...] = ("model", "node", "user")

OTHERS = "(others)"  # what exceeds the numbers below; no model, node or user has that name
STORED: dict[Kind, int] = {"model": 100, "node": 200, "user": 50}  # names of one minute or hour
REMEMBERED = 5_000  # names of one kind in the open minute


@dataclass(frozen=True, slots=True)
class EndedRequest:
    """One request that has ended: it is finished, failed or cancelled.

    `service`: None if it never ran; times in seconds.
    """

    model: str
    user: str
    node: str
    outcome: str
    wait: float
    service: float | None
    prompt_tokens: int
    completion_tokens: int


@dataclass(slots=True)
class Counts:
    """Sums over some time. `busy_seconds` of `slot_seconds`: how much of its slots was in use."""

    requests: int = 0
    failed: int = 0
    cancelled: int = 0
    prompt_tokens: int = 0
    completion_tokens: int = 0
    busy_seconds: float = 0.0
    slot_seconds: float = 0.0
    waits: Histogram = field(default_factory=Histogram)
    services: Histogram = field(default_factory=Histogram)

    def add(self, request: EndedRequest, wait: int, service: int | None) -> None:
        """Counts one request, whose times are in these buckets."""
        self.requests += 1
        if request.outcome == "failed":
            self.failed += 1
        if request.outcome == "cancelled":
            self.cancelled += 1
        self.prompt_tokens += request.prompt_tokens
        self.completion_tokens += request.completion_tokens
        self.waits.counts[wait] += 1
        if service is not None:
            self.services.counts[service] += 1

    def merge(self, other: "Counts") -> None:
        """Adds the other's sums."""
        self.requests += other.requests
        self.failed += other.failed
        self.cancelled += other.cancelled
        self.prompt_tokens += other.prompt_tokens
        self.completion_tokens += other.completion_tokens
        self.busy_seconds += other.busy_seconds
        self.slot_seconds += other.slot_seconds
        self.waits.merge(other.waits)
        self.services.merge(other.services)

    @property
    def weight(self) -> float:
        """How much detail is lost if this is folded into the others."""
        return self.requests + self.busy_seconds


class Tally:
    """The counts of one minute or hour, by kind and name."""

    def __init__(self) -> None:
        self._counts: dict[Kind, dict[str, Counts]] = {kind: {} for kind in KINDS}

    def of(self, kind: Kind, name: str) -> Counts:
        """The counts of that name, to be added to."""
        named = self._counts[kind]
        if name not in named and len(named) >= REMEMBERED:
            name = OTHERS
        return named.setdefault(name, Counts())

    def add(self, request: EndedRequest) -> None:
        """Counts the request for its model, its user and, if it ran, its node."""
        wait = bucket_of(request.wait)
        service = None if request.service is None else bucket_of(request.service)
        self.of("model", request.model).add(request, wait, service)
        self.of("user", request.user).add(request, wait, service)
        if request.node:
            self.of("node", request.node).add(request, wait, service)

    def bounded(self) -> Iterator[tuple[Kind, str, Counts]]:
        """All counts; the smallest beyond STORED are summed as OTHERS."""
        for kind in KINDS:
            for name, counts in largest(self._counts[kind], STORED[kind]).items():
                yield kind, name, counts


def largest(named: dict[str, Counts], most: int) -> dict[str, Counts]:
    """The `most` with the largest weight; the rest summed up as OTHERS."""
    if len(named) <= most:
        return named
    order = sorted(named, key=lambda name: (name == OTHERS, -named[name].weight, name))
    shown = {name: named[name] for name in order[:most]}
    others = Counts()
    for name in order[most:]:
        others.merge(named[name])
    shown[OTHERS] = others
    return shown
