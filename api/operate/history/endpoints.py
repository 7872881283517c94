"""GET /api/operate/history, as JSON and as CSV."""

import time
from typing import Annotated

from asgiref.sync import sync_to_async
from django.db import connections
from django.http import HttpResponse
from ninja import Query, Router

from api.accounts.auth import AuthRequest, Staff
from api.context import app
from api.errors import ApiError
from api.operate.history import schemas
from api.operate.history.read import History, as_csv, read
from api.operate.history.schemas import HistoryAnswer, HistoryQuery
from api.operate.history.series import BadRange, Grouping, Metric
from api.operate.history.store import HOUR, MINUTE

router = Router(tags=["operate"], auth=Staff())


@router.get("", response=HistoryAnswer)
async def history(request: AuthRequest, query: Annotated[HistoryQuery, Query()]) -> HistoryAnswer:
    """One metric over time, by model, node or user."""
    return schemas.answer(await _read(query))


@router.get("/csv", include_in_schema=False)
async def history_csv(
    request: AuthRequest, query: Annotated[HistoryQuery, Query()]
) -> HttpResponse:
    """The same as a file."""
    history = await _read(query)
    name = f"canopy-{history.metric}-by-{history.by}.csv"
    return HttpResponse(
        as_csv(history),
        content_type="text/csv; charset=utf-8",
        headers={"Content-Disposition": f'attachment; filename="{name}"'},
    )


async def _read(query: HistoryQuery) -> History:
    until = query.until
    if until is None:
        until = int(time.time()) + MINUTE
    since = query.since
    if since is None:
        since = until - HOUR
    await app().history.write()  # what this process has counted a moment ago, too
    try:
        # In a thread of its own: the one that all others share must not wait for it.
        reading = sync_to_async(_read_alone, thread_sensitive=False)
        return await reading(query.metric, query.by, since, until, query.step)
    except BadRange as error:
        field, _, _ = str(error).partition(":")
        raise ApiError(400, str(error), field=field, code="invalid_value") from error


def _read_alone(metric: Metric, by: Grouping, start: int, end: int, step: int | None) -> History:
    """Closes the connection that this thread has opened."""
    try:
        return read(metric, by, start, end, step)
    finally:
        connections.close_all()
