"""After the storm: is everything answered, and is the tree whole?"""

import asyncio
import time
from collections.abc import Iterable, Mapping
from typing import Any

import httpx

from bench.instance import Instance
from bench.management import Management
from topology import names

REST_SECONDS = 60.0
_LOOK = 1.0
_STATES = ("idle", "busy")


async def problems(canopy: Instance, broker: Management, nodes: Iterable[str]) -> list[str]:
    """Waits until nothing runs, nothing waits and every node is back; what is wrong after REST_SECONDS."""
    headers = {"Authorization": f"Bearer {canopy.key}"}
    deadline = time.monotonic() + REST_SECONDS
    async with httpx.AsyncClient(
        base_url=canopy.url, headers=headers, timeout=5.0, trust_env=False
    ) as http:
        while True:
            try:
                tree = (await http.get("/api/tree")).raise_for_status().json()
                found = unrest(tree, await broker.queues(), nodes)
            except httpx.HTTPError as error:
                found = [f"nobody tells: {error!r}"]
            if not found or time.monotonic() > deadline:
                return found
            await asyncio.sleep(_LOOK)


def unrest(
    tree: Mapping[str, Any], queues: Iterable[Mapping[str, Any]], nodes: Iterable[str]
) -> list[str]:
    """What is not at rest, one line each. Pure. `nodes`: the names that must be there."""
    seen = {node["name"]: node for node in tree["nodes"]}
    found = [f"{name} is not in the tree" for name in nodes if name not in seen]
    for name, node in seen.items():
        if node["state"] not in _STATES:
            found.append(f"{name} is {node['state']}: {node['detail']}")
        if node["running"] or node["queued"]:
            found.append(f"{name} has {node['running']} running and {node['queued']} queued")
    for queue in queues:
        messages = queue.get("messages", 0)
        if messages and (names.node_of(queue["name"]) or queue["name"] == names.DEAD_QUEUE):
            found.append(f"{queue['name']} holds {messages} messages")
    return found
