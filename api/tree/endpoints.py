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
from api.operate.audit.record import recorded
from broker.errors import Unavailable
from broker.tree import Tree
from broker.wire import AnyControl, Drain, Resume

router = Router(tags=["tree"], auth=Staff())

_LONGEST_NAME = 200  # characters


@router.get("")
async def read(request: AuthRequest) -> Tree:
    """The tree as it is now."""
    return await app().tree.now()


@router.get("/stream")
async def stream(request: AuthRequest, patches: bool = False) -> HttpResponseBase:
    """The tree as server-sent events: at once, on every change, and every few seconds.

    With `patches`, the figures of the last minutes (`trend`) and the tree come once, and then what
    is different (`patch`).
    """
    if patches:
        return sse.EventStream(app().tree.follow_changes(), endless=True)
    return sse.EventStream(_events(), endless=True)


@router.post("/nodes/{name}/drain", response={202: None})
async def drain(request: AuthRequest, name: str) -> Status[Any]:
    """Lets a node finish its running jobs and gives it no others."""
    async with recorded(request, "drain", name):
        _refuse_entrance(name)
        return await _send(name, Drain())


@router.post("/nodes/{name}/resume", response={202: None})
async def resume(request: AuthRequest, name: str) -> Status[Any]:
    """Gives a drained node jobs again."""
    async with recorded(request, "resume", name):
        return await _send(name, Resume())


def _refuse_entrance(name: str) -> None:
    state = app().client.nodes().get(name)
    if state is not None and state.parent is None:
        message = f"{name} is the entrance of its tree: pause the model's intake instead"
        raise ApiError(400, message, field="name", code="invalid_value")


async def _send(name: str, message: AnyControl) -> Status[Any]:
    name = name[:_LONGEST_NAME]
    try:
        exists = await app().client.control(name, message)
    except Unavailable as error:
        reason = f"the node cannot be told now: {error}"
        raise ApiError(503, reason, code="unavailable") from error
    if not exists:
        raise ApiError(404, f"there is no node {name!r}", field="name", code="not_found")
    return Status(202, None)


async def _events() -> AsyncGenerator[bytes]:
    async with aclosing(app().tree.follow()) as trees:
        async for tree in trees:
            yield sse.event("tree", tree)
