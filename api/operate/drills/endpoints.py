"""Drills: what one would hit, start one, the latest and how they went."""

import asyncio
import time
from collections.abc import AsyncGenerator
from typing import Annotated, Any

from django.http.response import HttpResponseBase
from ninja import Query, Router, Status

from api.accounts.auth import Administrator, AuthRequest, Staff
from api.context import app
from api.http import sse
from api.http.documentation import error_statuses
from api.operate.audit.record import BEGAN, record
from api.operate.drills import schemas, store
from api.operate.drills.schemas import (
    DrillBody,
    DrillList,
    DrillPlan,
    DrillQuery,
    DrillResult,
)

router = Router(tags=["operate"], auth=Staff())

SHOWN = 20
READ_EVERY = 0.5  # seconds
REPEAT_EVERY = 10.0  # seconds after which an unchanged list is sent again


@router.get("", response=DrillList)
async def read(request: AuthRequest) -> DrillList:
    """The latest drills, newest first."""
    return await _list(request.auth.is_superuser)


@router.get("/stream")
async def stream(request: AuthRequest) -> HttpResponseBase:
    """The same as server-sent events, at once and on every change."""
    return sse.EventStream(_events(request.auth.is_superuser), endless=True)


@router.get("/plan", response=DrillPlan, openapi_extra=error_statuses(404))
async def plan(request: AuthRequest, query: Annotated[DrillQuery, Query()]) -> DrillPlan:
    """What a drill would hit now, or why it cannot begin; nothing happens."""
    return schemas.drill_plan(await app().drills.plan(query.node))


@router.post(
    "", auth=Administrator(), response={202: DrillResult}, openapi_extra=error_statuses(404, 409)
)
async def start(request: AuthRequest, body: DrillBody) -> Status[Any]:
    """Kills a node's process; the list, and the audit log, tell what became of its jobs."""
    entry = await record(request, "drill", body.node, result=BEGAN)
    by = request.auth.get_username()
    drill = await app().drills.start(by, body.node, body.seconds, entry)
    return Status(202, schemas.result(drill))


async def _list(may_start: bool) -> DrillList:
    rows = await store.latest(SHOWN)
    return DrillList(drills=[schemas.result(row) for row in rows], may_start=may_start)


async def _events(may_start: bool) -> AsyncGenerator[bytes]:
    shown: object = None
    sent_at = 0.0
    while True:
        drills = (await _list(may_start)).model_dump(mode="json")
        if drills != shown or time.monotonic() - sent_at >= REPEAT_EVERY:
            shown, sent_at = drills, time.monotonic()
            yield sse.event("drills", drills)
        await asyncio.sleep(READ_EVERY)
