"""GET /api/events."""

from typing import Annotated

from django.http.response import HttpResponseBase
from ninja import Query, Router
from pydantic import Field

from api.accounts.auth import AuthRequest, Member
from api.chat import store
from api.context import app
from api.events.feed import events
from api.http import sse
from api.http.documentation import error_statuses
from api.http.parsing import MAX_ROW_ID

router = Router(tags=["chat"], auth=Member())

RowId = Annotated[int, Field(ge=0, le=MAX_ROW_ID)]


@router.get("/events", openapi_extra=error_statuses(404))
async def read(
    request: AuthRequest, conversation: Annotated[RowId | None, Query()] = None
) -> HttpResponseBase:
    """Server-sent events: what changes in my conversations, and all that happens in one."""
    opened = None
    if conversation is not None:
        opened = await store.conversation(request.auth, conversation)
    app().hub.check_room(request.auth.pk)
    return sse.EventStream(events(request.auth, opened), endless=True)
