"""GET /api/operate/usage, as JSON and as CSV."""

from datetime import UTC, date, datetime, timedelta
from typing import Annotated, Any

from asgiref.sync import sync_to_async
from django.http import HttpResponse
from ninja import Query, Router, Schema
from pydantic import Field

from api.accounts.auth import AuthRequest, Staff
from api.context import app
from api.http.parsing import Integer, StorableText
from api.operate.usage import store
from api.operate.usage.store import Grouping

router = Router(tags=["operate"], auth=Staff())


class UsageQuery(Schema):
    """The last `days` (UTC, today included), by these columns, of everybody or of one `user`."""

    by: list[Grouping] = Field(default=["user"], min_length=1, max_length=4)
    days: Annotated[Integer, Field(ge=1, le=store.KEEP_DAYS)] = 30
    user: Annotated[StorableText, Field(max_length=150)] | None = None


class UsageLine(Schema):
    """One group; a column by which nothing is grouped is null. `key`: empty for the pages."""

    day: date | None = None
    user: str | None = None
    key: str | None = None
    label: str | None = None
    model: str | None = None
    requests: int
    failed: int
    prompt_tokens: int
    completion_tokens: int


class UsageAnswer(Schema):
    """The first 10,000 groups."""

    days: int
    use: list[UsageLine]


@router.get("", response=UsageAnswer)
async def usage(request: AuthRequest, query: Annotated[UsageQuery, Query()]) -> dict[str, Any]:
    """Requests and tokens by user, key, model and day."""
    return {"days": query.days, "use": await _read(query)}


@router.get("/csv", include_in_schema=False)
async def usage_csv(request: AuthRequest, query: Annotated[UsageQuery, Query()]) -> HttpResponse:
    """The same as a file."""
    return HttpResponse(
        store.as_csv(await _read(query)),
        content_type="text/csv; charset=utf-8",
        headers={"Content-Disposition": 'attachment; filename="canopy-usage.csv"'},
    )


async def _read(query: UsageQuery) -> list[dict[str, Any]]:
    await app().usage.flush()  # what this process has counted a moment ago, too
    today = datetime.now(UTC).date()
    since = today - timedelta(days=query.days - 1)
    return await sync_to_async(store.read)(query.by, since, today, query.user)
