"""GET /api/tree and its stream; drain and resume a node."""

from collections.abc import AsyncGenerator
from contextlib import aclosing
from typing import Any

from django.http.response import HttpResponseBase
from ninja import Router, Status

from api.accounts.auth import AuthRequest, Staff
from api.context import app
from api.errors import ApiError
from api.http import sse
from api.tree.watch import compose, read_edges
from broker.errors import Unavailable
from broker.tree import Tree
from broker.wire import AnyControl, Drain, Resume

router = Router(tags=["tree"], auth=Staff())

_LONGEST_NAME = 200  # characters


@router.get("")
async def read(request: AuthRequest) -> Tree:
    """The tree as it is now."""
    return await compose(await read_edges(), app().client)


@router.get("/stream")
async def stream(request: AuthRequest) -> HttpResponseBase:
    """The tree as server-sent events: at once, on every change, and every few seconds."""
    return sse.EventStream(_events(), endless=True)


@router.post("/nodes/{name}/drain", response={202: None})
async def drain(request: AuthRequest, name: str) -> Status[Any]:
    """Lets a node finish its running jobs and gives it no others."""
    return await _send(name, Drain())


@router.post("/nodes/{name}/resume", response={202: None})
async def resume(request: AuthRequest, name: str) -> Status[Any]:
    """Gives a drained node jobs again."""
    return await _send(name, Resume())


async def _send(name: str, message: AnyControl) -> Status[Any]:
    name = name[:_LONGEST_NAME]
    try:
        exists = await app().client.control(name, message)
    except Unavailable as error:
        raise ApiError(503, f"the node cannot be told now: {error}") from error
    if not exists:
        raise ApiError(404, f"there is no node {name!r}", field="name")
    return Status(202, None)


async def _events() -> AsyncGenerator[bytes]:
    async with aclosing(app().tree.follow()) as trees:
        async for tree in trees:
            yield sse.event("tree", tree)
