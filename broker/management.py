"""The tree as the broker itself sees it, read through RabbitMQ's management API: bindings and presence."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from urllib.parse import unquote, urlsplit

import httpx

from topology import names

READ_SECONDS = 5.0
Listed = dict[str, object]  # one object of a listing

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


def read_edges(bindings: list[Listed], queues: list[Listed]) -> Edges:
    """Edges from the two listings of the management API. The queues' is taken last: a binding whose queue is not there
    went with it in between.
    """
    listed = [str(queue["name"]) for queue in queues]
    present = frozenset(owner for name in listed if (owner := names.inbox_owner(name)) is not None)
    registered = frozenset(node for name in listed if (node := names.node_of(name)) is not None)
    roots: dict[str, str] = {}
    parents: dict[str, str] = {}
    for binding in bindings:
        source, queue, key = (
            str(binding["source"]),
            str(binding["destination"]),
            str(binding["routing_key"]),
        )
        child = names.node_of(queue)
        if child is None or child not in registered:
            continue
        if source == names.JOBS_EXCHANGE:
            roots[child] = key
        elif (parent := names.node_of(source)) is not None:
            parents[child] = parent
    return Edges(roots, parents, present, registered)


async def edges(management_url: str) -> Edges:
    """Reads the tree. `management_url`: http://user:password@host:port. Raises ManagementError."""
    async with _api(management_url) as http:
        return read_edges(await _listed(http, "bindings"), await _listed(http, "queues"))


async def prune_tree(management_url: str, wanted: Edges) -> None:
    """Removes what a former tree of another shape or with other models left: edges that are not `wanted`, and the
    queues and exchanges of nodes that are neither wanted nor present. Safe while nodes register.

    Jobs in such queues go with them: the API processes that waited for them are gone. Raises ManagementError.
    """
    async with _api(management_url) as http:
        bindings = await _listed(http, "bindings")
        queues = await _listed(http, "queues")
        found = read_edges(bindings, queues)
        for binding in bindings:
            if _is_edge(binding) and not _is_wanted(binding, wanted):
                source, queue = binding["source"], binding["destination"]
                await http.delete(
                    f"/api/bindings/%2F/e/{source}/q/{queue}/{binding['properties_key']}"
                )
        known = {*wanted.roots, *wanted.parents, *found.present}
        for kind in ("queues", "exchanges"):
            for each in await _listed(http, kind):
                node = names.node_of(str(each["name"]))
                if node is not None and node not in known:
                    await http.delete(f"/api/{kind}/%2F/{each['name']}")


def _is_edge(binding: Listed) -> bool:
    entrance = binding["source"] == names.JOBS_EXCHANGE
    return names.node_of(str(binding["destination"])) is not None and (
        entrance or names.node_of(str(binding["source"])) is not None
    )


def _is_wanted(binding: Listed, wanted: Edges) -> bool:
    child = names.node_of(str(binding["destination"])) or ""
    if binding["source"] == names.JOBS_EXCHANGE:
        return wanted.roots.get(child) == binding["routing_key"]
    return child in wanted.parents and binding["source"] == names.node(wanted.parents[child])


async def _listed(http: httpx.AsyncClient, kind: str) -> list[Listed]:
    answer = await http.get(f"/api/{kind}/%2F", params=None if kind == "bindings" else _NAMES_ONLY)
    answer.raise_for_status()
    found: list[Listed] = answer.json()
    return found


@asynccontextmanager
async def _api(management_url: str) -> AsyncIterator[httpx.AsyncClient]:
    parts = urlsplit(management_url)
    base = (
        f"{parts.scheme}://{parts.netloc.rpartition('@')[2]}"  # an IPv6 address keeps its brackets
    )
    auth = (unquote(parts.username or ""), unquote(parts.password or ""))
    try:
        async with httpx.AsyncClient(
            base_url=base,
            auth=auth,
            timeout=READ_SECONDS,
            trust_env=False,
            verify=parts.scheme
            == "https",  # else it would read all certificates, 30 ms in which nothing else runs
        ) as http:
            yield http
    except httpx.HTTPError as error:
        raise ManagementError(
            f"the broker's management API at {base} does not answer: {error!r}"
        ) from error
