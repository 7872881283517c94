"""Giving feedback on answers, and reading one's own."""

from datetime import datetime
from typing import Annotated, Any

from ninja import Query, Router, Schema, Status
from pydantic import Field, StringConstraints

from api.accounts.auth import AuthRequest, Member
from api.chat import store as chat
from api.chat.models import Role
from api.chat.schemas import RowId
from api.errors import ApiError
from api.feedback.models import Feedback
from api.http.parsing import Body, StorableText

router = Router(tags=["chat"], auth=Member())

MAX_LISTED = 10_000
Note = Annotated[StorableText, StringConstraints(strip_whitespace=True, max_length=2_000)]


class NewFeedback(Body):
    """An opinion of an answer. `good`: thumbs up or down."""

    good: bool
    note: Note = Field("")


class Given(Schema):
    """An opinion of an answer, with what an export needs to know."""

    conversation: int
    message: int
    model: str
    good: bool
    note: str
    updated: datetime


class GivenList(Schema):
    """My opinions, newest first."""

    feedback: list[Given]


@router.get("/feedback", response=GivenList)
async def read(
    request: AuthRequest, conversation: Annotated[RowId | None, Query()] = None
) -> GivenList:
    """My feedback, of all answers or of a conversation's."""
    rows = Feedback.objects.filter(message__conversation__user=request.auth)
    if conversation is not None:
        rows = rows.filter(message__conversation=conversation)
    listed = []
    async for row in rows.select_related("message")[:MAX_LISTED]:
        listed.append(_given(row))
    return GivenList(feedback=listed)


@router.put("/conversations/{row:number}/messages/{row:message}/feedback", response=Given)
async def give(request: AuthRequest, number: int, message: int, body: NewFeedback) -> Given:
    """Says what I think of an answer, in place of what I said before."""
    answer = await chat.message(request.auth, number, message)
    if answer.role != Role.ASSISTANT:
        raise ApiError(404, "this message is no answer", code="not_found")
    fields = {"good": body.good, "note": body.note}
    row, _ = await Feedback.objects.aupdate_or_create(message=answer, defaults=fields)
    row.message = answer
    return _given(row)


@router.delete("/conversations/{row:number}/messages/{row:message}/feedback", response={204: None})
async def withdraw(request: AuthRequest, number: int, message: int) -> Status[Any]:
    """Takes it back."""
    answer = await chat.message(request.auth, number, message)
    await Feedback.objects.filter(message=answer).adelete()
    return Status(204, None)


def _given(row: Feedback) -> Given:
    return Given(
        conversation=row.message.conversation_id,
        message=row.message_id,
        model=row.message.model,
        good=row.good,
        note=row.note,
        updated=row.updated,
    )
