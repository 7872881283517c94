"""The tree as the broker itself sees it, read through RabbitMQ's management API: bindings and presence."""

from dataclasses import dataclass
from urllib.parse import urlsplit

import httpx

from topology import names

READ_SECONDS = 5.0


class ManagementError(Exception):
    """The management API does not answer, or refuses; the text says which."""


@dataclass(frozen=True, slots=True)
class Edges:
    """What the bindings say. `roots`: root -> model; `parents`: child -> parent; `present`: nodes with an inbox;
    `registered`: nodes with a queue, alive or not.
    """

    roots: dict[str, str]
    parents: dict[str, str]
    present: frozenset[str]
    registered: frozenset[str]


def read_edges(bindings: list[dict[str, object]], queues: list[dict[str, object]]) -> Edges:
    """Edges from the two listings of the management API."""
    roots: dict[str, str] = {}
    parents: dict[str, str] = {}
    for binding in bindings:
        source, queue, key = str(binding["source"]), str(binding["destination"]), str(binding["routing_key"])
        child = names.node_of(queue)
        if child is None:
            continue
        if source == names.JOBS_EXCHANGE:
            roots[child] = key
        elif (parent := names.node_of(source)) is not None:
            parents[child] = parent
    listed = [str(queue["name"]) for queue in queues]
    present = frozenset(owner for name in listed if (owner := names.inbox_owner(name)) is not None)
    registered = frozenset(node for name in listed if (node := names.node_of(name)) is not None)
    return Edges(roots, parents, present, registered)


async def edges(management_url: str) -> Edges:
    """Reads the tree. `management_url`: http://user:password@host:port. Raises ManagementError."""
    parts = urlsplit(management_url)
    base = f"{parts.scheme}://{parts.hostname}:{parts.port}/api"
    auth = (parts.username or "", parts.password or "")
    try:
        async with httpx.AsyncClient(auth=auth, timeout=READ_SECONDS, trust_env=False) as http:
            bindings = await http.get(f"{base}/bindings/%2F")
            queues = await http.get(f"{base}/queues/%2F", params={"columns": "name", "disable_stats": "true"})
            bindings.raise_for_status()
            queues.raise_for_status()
            return read_edges(bindings.json(), queues.json())
    except httpx.HTTPError as error:
        raise ManagementError(f"the broker's management API at {base} does not answer: {error!r}") from error
