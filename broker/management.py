"""The tree as the broker itself sees it, read through RabbitMQ's management API: bindings and presence."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from urllib.parse import unquote, urlsplit

import httpx

from topology import names

READ_SECONDS = 5.0
_NAMES_ONLY = {"columns": "name", "disable_stats": "true"}


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
    async with _api(management_url) as http:
        bindings = await http.get("/api/bindings/%2F")
        queues = await http.get("/api/queues/%2F", params=_NAMES_ONLY)
        bindings.raise_for_status()
        queues.raise_for_status()
        return read_edges(bindings.json(), queues.json())


async def clear_tree(management_url: str) -> None:
    """Deletes every node's queue and exchange: what a former tree left, which may have had another shape.

    For a start from nothing: no API process that waited for their jobs can be alive. Raises ManagementError.
    """
    async with _api(management_url) as http:
        for kind in ("queues", "exchanges"):
            listed = await http.get(f"/api/{kind}/%2F", params=_NAMES_ONLY)
            listed.raise_for_status()
            for each in listed.json():
                if names.node_of(each["name"]) is not None:
                    await http.delete(f"/api/{kind}/%2F/{each['name']}")


@asynccontextmanager
async def _api(management_url: str) -> AsyncIterator[httpx.AsyncClient]:
    parts = urlsplit(management_url)
    base = f"{parts.scheme}://{parts.hostname}:{parts.port}"
    auth = (unquote(parts.username or ""), unquote(parts.password or ""))
    try:
        async with httpx.AsyncClient(base_url=base, auth=auth, timeout=READ_SECONDS, trust_env=False) as http:
            yield http
    except httpx.HTTPError as error:
        raise ManagementError(f"the broker's management API at {base} does not answer: {error!r}") from error
