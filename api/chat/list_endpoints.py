"""Endpoints for many conversations at once, and the way back from a deletion."""

from typing import Annotated, Any

from ninja import Router, Schema
from pydantic import Field

from api.accounts.auth import AuthRequest, Member
from api.answers import following
from api.chat import conversation_list, schemas
from api.chat.conversation_list import Action
from api.chat.models import Conversation
from api.context import app
from api.errors import ApiError
from api.http.parsing import Body

router = Router(tags=["chat"], auth=Member())

MOST_AT_ONCE = 500
TOLD_ONE_BY_ONE = 50  # of many more deletions, readers load the list again

_CHANGES: dict[Action, dict[str, Any]] = {
    "archive": {"archived": True},
    "unarchive": {"archived": False},
}


class Bulk(Body):
    """What to do with these conversations; `folder`: where to `move` them, empty for none."""

    action: Action
    ids: Annotated[list[schemas.RowId], Field(min_length=1, max_length=MOST_AT_ONCE)]
    folder: schemas.Folder = ""


class Changed(Schema):
    """How many conversations there were."""

    count: int


@router.post("/conversations/bulk", response=Changed)
async def change_many(request: AuthRequest, body: Bulk) -> Changed:
    """Deletes, restores, archives or moves conversations. Others' and missing ones are left out."""
    count = await _apply(request, body)
    if body.action == "delete" and len(body.ids) <= TOLD_ONE_BY_ONE:
        for number in body.ids:
            app().hub.publish(request.auth.pk, number, "deleted")
    else:
        app().hub.publish_many(request.auth.pk)
    return Changed(count=count)


async def _apply(request: AuthRequest, body: Bulk) -> int:
    if body.action == "delete":
        deleted = await conversation_list.delete(request.auth, body.ids)
        for answer in deleted.unfinished:
            await following.stop(answer)
        return len(deleted.numbers)
    if body.action == "restore":
        return await conversation_list.restore(request.auth, body.ids)
    changes = _CHANGES.get(body.action, {"folder": body.folder})
    return await conversation_list.change_many(request.auth, body.ids, changes)


@router.post("/conversations/{row:number}/restore", response=schemas.Summary)
async def restore(request: AuthRequest, number: int) -> Conversation:
    """Brings a conversation back that was deleted less than an hour ago."""
    await conversation_list.restore(request.auth, [number])
    conversation = await conversation_list.summary(request.auth, number)
    if conversation is None:
        raise ApiError(404, "this conversation is gone for good", code="gone")
    app().hub.publish(request.auth.pk, number, "created")
    return conversation
