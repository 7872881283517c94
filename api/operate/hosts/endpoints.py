"""Hosts: the list, its stream, start and stop a node."""

from collections.abc import AsyncGenerator
from contextlib import aclosing
from typing import Any

from django.http.response import HttpResponseBase
from ninja import Router, Status

from api.accounts.auth import AuthRequest, Staff
from api.context import app
from api.http import sse
from api.http.documentation import error_statuses
from api.operate.audit.record import recorded
from api.operate.hosts import schemas
from api.operate.hosts.schemas import HostList, StartBody, Started

router = Router(tags=["operate"], auth=Staff())

_LONGEST_NAME = 200  # characters


@router.get("", response=HostList)
async def read(request: AuthRequest) -> HostList:
    """Every host with an agent: what it has, allows and runs."""
    return HostList(hosts=[schemas.host(state) for state in app().hosts.states().values()])


@router.get("/stream")
async def stream(request: AuthRequest) -> HttpResponseBase:
    """The same as server-sent events, at once and on every change."""
    return sse.EventStream(_events(), endless=True)


@router.post("/{host}/nodes", response={202: Started}, openapi_extra=error_statuses(404, 409))
async def start(request: AuthRequest, host: str, body: StartBody) -> Status[Any]:
    """Starts a node; it loads its model after the answer, and the list shows how that goes."""
    host = host[:_LONGEST_NAME]
    async with recorded(request, "start node", host, body.model) as entry:
        started = await app().hosts.start(host, body)
        entry.result = f"{started.node} below {started.parent}"
    return Status(202, started)


@router.delete("/{host}/nodes/{name}", response={202: None}, openapi_extra=error_statuses(404))
async def stop(request: AuthRequest, host: str, name: str) -> Status[Any]:
    """Ends a node for good: it leaves the tree in order, which takes some seconds."""
    host, name = host[:_LONGEST_NAME], name[:_LONGEST_NAME]
    async with recorded(request, "stop node", name, host):
        await app().hosts.stop(host, name)
    return Status(202, None)


async def _events() -> AsyncGenerator[bytes]:
    async with aclosing(app().hosts.follow()) as changes:
        async for hosts in changes:
            yield sse.event("hosts", {"hosts": hosts})
