"""The tree's bindings and present nodes, read through RabbitMQ's management API."""

import asyncio
import base64
import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any
from urllib.parse import quote, unquote, urlsplit

from broker.errors import ManagementError
from topology import names
from topology.prefix import Prefix

READ_SECONDS = 5.0
Listed = dict[str, object]  # an object of one of the API's listings

_CREATED, _NO_CONTENT = 201, 204
_UNAUTHORIZED, _FORBIDDEN = 401, 403
_NAME_FIELDS = ("name", "source", "destination")
_NAMES_ONLY = "?columns=name&disable_stats=true"


@dataclass(frozen=True, slots=True)
class Edges:
    """What the bindings and queues say about the tree.

    `roots`: root -> model; `parents`: child -> parent; `present`: nodes with an inbox, so alive;
    `registered`: nodes with a queue, alive or not.
    """

    roots: dict[str, str]
    parents: dict[str, str]
    present: frozenset[str]
    registered: frozenset[str]


def read_edges(bindings: list[Listed], queues: list[Listed]) -> Edges:
    """Edges from two listings of the management API.

    Take the listing of queues last: a binding whose queue it lacks was deleted with that queue.
    """
    queue_names = [str(queue["name"]) for queue in queues]
    present = frozenset(filter(None, map(names.inbox_owner, queue_names)))
    registered = frozenset(filter(None, map(names.node_of, queue_names)))
    roots: dict[str, str] = {}
    parents: dict[str, str] = {}
    for binding in bindings:
        source = str(binding["source"])
        child = names.node_of(str(binding["destination"]))
        if child is None or child not in registered:
            continue
        parent = names.node_of(source)
        if source == names.JOBS_EXCHANGE:
            roots[child] = str(binding["routing_key"])
        elif parent is not None:
            parents[child] = parent
    return Edges(roots, parents, present, registered)


async def edges(management_url: str) -> Edges:
    """Reads the tree. `management_url`: http://user:password@host:port/vhost.

    Raises ManagementError.
    """
    api = ManagementApi(management_url)
    return read_edges(await api.listing("bindings"), await api.listing("queues"))


async def prune_tree(management_url: str, expected: Edges) -> None:
    """Removes what a former tree, of another shape or with other models, left in the broker.

    These are edges that are not `expected`, and the queues and exchanges of nodes that are neither
    expected nor present. Safe while nodes register. Jobs in such queues are deleted with them: the
    API processes that waited for their answers are gone. Raises ManagementError.
    """
    api = ManagementApi(management_url)
    bindings = await api.listing("bindings")
    queues = await api.listing("queues")
    present = read_edges(bindings, queues).present
    for binding in bindings:
        if _is_edge(binding) and not _is_expected(binding, expected):
            source, queue = api.quoted(binding["source"]), api.quoted(binding["destination"])
            key = binding["properties_key"]  # which the API itself has quoted
            await api.delete(f"bindings/{api.place}/e/{source}/q/{queue}/{key}")
    known = present.union(expected.roots, expected.parents)
    for kind in ("queues", "exchanges"):
        for listed in await api.listing(kind):
            node = names.node_of(str(listed["name"]))
            if node is not None and node not in known:
                await api.delete(f"{kind}/{api.place}/{api.quoted(listed['name'])}")


def _is_edge(binding: Listed) -> bool:
    if names.node_of(str(binding["destination"])) is None:
        return False
    source = str(binding["source"])
    return source == names.JOBS_EXCHANGE or names.node_of(source) is not None


def _is_expected(binding: Listed, expected: Edges) -> bool:
    child = names.node_of(str(binding["destination"])) or ""
    if binding["source"] == names.JOBS_EXCHANGE:
        return expected.roots.get(child) == binding["routing_key"]
    return child in expected.parents and binding["source"] == names.node(expected.parents[child])


class ManagementApi:
    """The management API over plain asyncio: an HTTP library takes longer to import than `tree`
    may take in all.

    Like a session it translates names, by the prefix in its address (see topology.prefix). The
    address names the virtual host as AMQP's do, but without one it is "/".
    """

    def __init__(self, url: str) -> None:
        """Raises ManagementError if the prefix cannot be used."""
        parts = urlsplit(url)
        try:
            self.prefix = Prefix.of(url)
        except names.BadName as error:
            raise ManagementError(str(error)) from error
        self._host = parts.hostname or ""
        self._tls = parts.scheme == "https"
        self._port = parts.port or (443 if self._tls else 80)
        self._base = f"{parts.scheme}://{parts.netloc.rpartition('@')[2]}"
        vhost = unquote(parts.path.removeprefix("/")) or "/"
        self.place = quote(vhost, safe="")  # for a path
        login = f"{unquote(parts.username or '')}:{unquote(parts.password or '')}"
        self._authorization = base64.b64encode(login.encode()).decode()

    async def listing(self, kind: str, columns: str = "") -> list[Listed]:
        """All `kind` (bindings, queues, exchanges) of the virtual host, but other instances'.

        `columns`: of what else than bindings; the name alone by default. Raises ManagementError.
        """
        query = _NAMES_ONLY
        if kind == "bindings":
            query = ""
        elif columns:
            query = f"?columns={columns}"
        listed: list[Listed] = await self.read(f"{kind}/{self.place}{query}")
        return [item for item in listed if self._translate(item)]

    def quoted(self, name: object) -> str:
        """The object's name in the broker, for a path."""
        return quote(self.prefix.outside(str(name)), safe="")

    async def read(self, path: str) -> Any:
        """The JSON at `path`. Raises ManagementError."""
        status, body = await self._request("GET", path)
        if status != 200:
            raise self._failure(f"status {status}")
        try:
            return json.loads(body)
        except ValueError as error:
            raise self._failure(repr(error)) from error

    async def delete(self, path: str) -> None:
        """Deletes an object, which may have vanished already. Raises ManagementError."""
        status, _ = await self._request("DELETE", path)
        self._check_right(status)

    async def put(self, path: str, content: Mapping[str, object]) -> None:
        """Creates or changes an object. Raises ManagementError."""
        status, _ = await self._request("PUT", path, json.dumps(content).encode())
        self._check_right(status)
        if status not in (_CREATED, _NO_CONTENT):
            raise self._failure(f"status {status}")

    def _check_right(self, status: int) -> None:
        if status in (_UNAUTHORIZED, _FORBIDDEN):
            raise ManagementError(
                f"the broker's management API at {self._base} refuses its user that: "
                "it must be an administrator"
            )

    def _translate(self, item: Listed) -> bool:
        """Gives the listed object the code's names; False if it is another instance's."""
        for field in _NAME_FIELDS:
            name = item.get(field)
            if isinstance(name, str) and name:
                item[field] = self.prefix.inside(name)
                if not item[field]:
                    return False
        return True

    async def _request(self, method: str, path: str, body: bytes = b"") -> tuple[int, bytes]:
        """The answer's status and body."""
        # HTTP/1.0, so that the body is never in chunks.
        request = (
            f"{method} /api/{path} HTTP/1.0\r\n"
            f"Host: {self._base.partition('://')[2]}\r\n"
            f"Authorization: Basic {self._authorization}\r\n"
            "Content-Type: application/json\r\n"
            f"Content-Length: {len(body)}\r\n\r\n"
        )
        try:
            async with asyncio.timeout(READ_SECONDS):
                reader, writer = await asyncio.open_connection(
                    self._host, self._port, ssl=self._tls or None
                )
                try:
                    writer.write(request.encode() + body)
                    return await _read_answer(reader)
                finally:
                    writer.close()
        except (OSError, ValueError, asyncio.IncompleteReadError) as error:
            raise self._failure(repr(error)) from error

    def _failure(self, reason: str) -> ManagementError:
        return ManagementError(
            f"the broker's management API at {self._base} does not answer: {reason}"
        )


async def _read_answer(reader: asyncio.StreamReader) -> tuple[int, bytes]:
    """Raises ValueError, IncompleteReadError. The server may close the connection much later."""
    lines = (await reader.readuntil(b"\r\n\r\n")).decode("latin-1").split("\r\n")
    _, _, after_version = lines[0].partition(" ")
    status = int(after_version[:3])
    if status == _NO_CONTENT:
        return _NO_CONTENT, b""
    for line in lines[1:]:
        name, _, value = line.partition(":")
        if name.lower() == "content-length":
            return status, await reader.readexactly(int(value))
    return status, await reader.read()
