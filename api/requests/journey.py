"""How a request got to its node, and how long its way will take, as response headers."""

import re
from collections.abc import Sequence
from dataclasses import dataclass

from django.http import HttpRequest

from api.context import app
from api.http import sse
from broker.wire import Job, Start

MAX_CLIENT_ID = 512  # characters of X-Client-Request-Id
_NOT_A_NAME = re.compile(r"[^A-Za-z0-9._-]")  # whatever a frame says, a header stays one line
MAX_HOPS = 32  # told of a way; a job may be given back and forwarded again and again


@dataclass(frozen=True, slots=True)
class Place:
    """A job's place in its class's queue as it was submitted, from 1; 0: a slot was free.

    `seconds`: estimated from the rate at which jobs ended lately; None: unknown.
    """

    position: int
    seconds: float | None = None

    def header(self) -> str:
        """Such as `position=3, seconds=12`."""
        if self.seconds is None:
            return f"position={self.position}"
        return f"position={self.position}, seconds={self.seconds:.0f}"


def place_of(job: Job) -> Place:
    """Where the job will stand if it is submitted now. To be called before it is."""
    backlog = app().backlog
    waiting = backlog.waiting(job)
    if not waiting and app().catalog.supply(job.model).free > 0:
        return Place(0)
    return Place(waiting + 1, backlog.seconds_for(waiting + 1))


def trail_header(trail: Sequence[str], waits: Sequence[float]) -> str:
    """The latest hops with the seconds that the job waited there: `root;wait=0.12, n1;wait=0.01`.

    A former release's nodes tell no wait.
    """
    known = dict(enumerate(waits))
    hops: list[str] = []
    for number, node in enumerate(trail):
        name, wait = _NOT_A_NAME.sub("?", node), known.get(number)
        hops.append(name if wait is None else f"{name};wait={wait:.3f}")
    return ", ".join(hops[-MAX_HOPS:])


def trail_comment(start: Start) -> bytes:
    """The same for a stream, whose headers are sent before a node has the job."""
    if not start.trail:
        return b""
    return sse.comment(f"trail: {trail_header(start.trail, start.waits)}")


def client_id_of(request: HttpRequest) -> str | None:
    """The client's own name for its request, which the response repeats."""
    name = request.META.get("HTTP_X_CLIENT_REQUEST_ID")
    if name and len(name) <= MAX_CLIENT_ID and name.isascii() and name.isprintable():
        return str(name)
    return None
