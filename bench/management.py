"""The broker's own figures, read through its management API."""

from typing import Any, Self
from urllib.parse import quote, unquote, urlsplit

import httpx

from topology import names

_SECONDS = 5.0


class Management:
    """The management API of one broker. Everything raises httpx.HTTPError while the broker is away."""

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
        """Every queue with its messages. The figures are up to 5 s old."""
        return await self._list("queues")

    async def connections(self) -> list[dict[str, Any]]:
        """Every connection, with `client_properties.connection_name`."""
        return await self._list("connections")

    async def close(self, connection: dict[str, Any]) -> None:
        """The broker ends a connection."""
        await self._http.delete(f"/api/connections/{quote(str(connection['name']), safe='')}")

    async def totals(self) -> dict[str, int]:
        """Connections, channels, queues and messages in the whole broker. Up to 5 s old."""
        answer = await self._http.get("/api/overview")
        answer.raise_for_status()
        found = answer.json()
        objects, queued = found["object_totals"], found["queue_totals"]
        return {
            **{name: int(objects.get(name, 0)) for name in ("connections", "channels", "queues")},
            "messages": int(queued.get("messages", 0)),
        }

    async def _list(self, kind: str) -> list[dict[str, Any]]:
        answer = await self._http.get(f"/api/{kind}")
        answer.raise_for_status()
        found: list[dict[str, Any]] = answer.json()
        return found
