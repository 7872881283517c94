"""The broker's management API."""

from typing import Any, Self
from urllib.parse import quote, unquote, urlsplit

import httpx

from topology import names

_SECONDS = 5.0


class Broker:
    """The management API of one broker. Every method raises httpx.HTTPError while it is away."""

    def __init__(self, url: str) -> None:
        parts = urlsplit(url)
        auth = (unquote(parts.username or ""), unquote(parts.password or ""))
        base = f"{parts.scheme}://{parts.netloc.rpartition('@')[2]}"
        self._http = httpx.AsyncClient(base_url=base, auth=auth, timeout=_SECONDS, trust_env=False)

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self._http.aclose()

    async def has_node(self, name: str) -> bool:
        """Whether the node is registered: its inbox exists."""
        return (await self._http.get(f"/api/queues/%2F/{names.inbox(name)}")).status_code == 200

    async def queues(self) -> list[dict[str, Any]]:
        """Every queue with its messages; up to 5 s old."""
        queues: list[dict[str, Any]] = await self._read("/api/queues")
        return queues

    async def cut(self, process: str) -> None:
        """Closes the connections of a process, named as `api` or `node n1`."""
        for connection in await self._read("/api/connections"):
            name = str(connection.get("client_properties", {}).get("connection_name", ""))
            if f"{name} ".startswith(f"{process} "):
                path = f"/api/connections/{quote(str(connection['name']), safe='')}"
                await self._http.delete(path)

    async def _read(self, path: str) -> Any:
        response = await self._http.get(path)
        response.raise_for_status()
        return response.json()
