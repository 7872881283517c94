"""GET /api/operate/audit: the audit log, a page at a time."""

from datetime import UTC, datetime
from typing import Annotated

from ninja import Query, Router, Schema
from pydantic import AfterValidator, AwareDatetime, Field, StringConstraints

from api.accounts.auth import AuthRequest, Staff
from api.chat.schemas import RowId
from api.http.parsing import Integer, StorableText
from api.operate.audit import store
from api.operate.audit.models import AuditEntry
from api.operate.audit.store import Selection

router = Router(tags=["operate"], auth=Staff())

LONGEST_PAGE = 500
Filter = Annotated[StorableText, StringConstraints(strip_whitespace=True, max_length=200)]


def _within_reach(moment: datetime) -> datetime:
    """Raises ValueError for a moment that databases cannot compare in every time zone."""
    if not 2 <= moment.year <= 9998:
        raise ValueError("give a year from 2 to 9998")
    return moment.astimezone(UTC)


Moment = Annotated[AwareDatetime, AfterValidator(_within_reach)]


class Entry(Schema):
    """Who did what to which target, when, and how it ended."""

    id: int
    when: datetime
    who: str
    action: str
    target: str
    detail: str
    result: str


class EntryPage(Schema):
    """Entries, newest first. `next`: the `before` of the following page; null at the end."""

    entries: list[Entry]
    next: int | None
    actions: list[str]


class AuditQuery(Schema):
    """Which part of the log. `text`: a part of the target or the detail."""

    who: Filter = ""
    action: Filter = ""
    text: Filter = ""
    since: Moment | None = None
    until: Moment | None = None
    before: RowId | None = None
    limit: Annotated[Integer, Field(ge=1, le=LONGEST_PAGE)] = 100


@router.get("", response=EntryPage)
async def read(request: AuthRequest, query: Annotated[AuditQuery, Query()]) -> EntryPage:
    """What operators did, newest first."""
    selection = Selection(
        who=query.who,
        action=query.action,
        text=query.text,
        since=query.since,
        until=query.until,
    )
    page = await store.page(selection, query.before, query.limit)
    entries = [_entry(row) for row in page.entries]
    return EntryPage(entries=entries, next=page.next, actions=await store.actions())


def _entry(row: AuditEntry) -> Entry:
    return Entry(
        id=row.pk,
        when=row.when,
        who=row.who,
        action=row.action,
        target=row.target,
        detail=row.detail,
        result=row.result,
    )
