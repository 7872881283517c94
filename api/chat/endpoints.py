"""The chat's endpoints: conversations, messages, live answers."""

from functools import partial
from typing import Any

from django.http.response import HttpResponseBase
from ninja import Router, Status

from api.accounts.auth import AuthRequest, Member
from api.answers import following
from api.chat import events, schemas, store
from api.chat.models import Conversation
from api.context import app
from api.http import sse
from api.http.documentation import error_statuses

router = Router(tags=["chat"], auth=Member())


@router.get("/models", response=schemas.Models)
async def models(request: AuthRequest) -> schemas.Models:
    """Every model, and whether a node serves it now."""
    catalog = app().catalog
    models = [_model(name) for name in await catalog.models()]
    return schemas.Models(models=models, default=await catalog.default())


@router.get("/conversations", response=schemas.Summaries)
async def conversations(request: AuthRequest) -> dict[str, list[Conversation]]:
    """My conversations, newest first."""
    return {"conversations": await store.conversations(request.auth)}


@router.post("/conversations", response={201: schemas.Conversation})
async def create(request: AuthRequest, body: schemas.NewConversation) -> Status[Any]:
    """Begins a conversation."""
    model = body.model or await app().catalog.default_or_503()
    conversation = await store.create(request.auth, model)
    return Status(201, await _with_messages(conversation))


@router.get("/conversations/{row:number}", response=schemas.Conversation)
async def read(request: AuthRequest, number: int) -> schemas.Conversation:
    """A conversation with its messages."""
    return await _with_messages(await store.conversation(request.auth, number))


@router.patch("/conversations/{row:number}", response=schemas.Summary)
async def change(
    request: AuthRequest, number: int, body: schemas.ConversationChange
) -> Conversation:
    """Renames a conversation, or gives it another model."""
    return await store.change(request.auth, number, body.title, body.model)


@router.delete("/conversations/{row:number}", response={204: None})
async def delete(request: AuthRequest, number: int) -> Status[Any]:
    """Removes a conversation; an answer that is being written is stopped."""
    for answer in await store.delete(request.auth, number):
        await following.stop(answer)
    return Status(204, None)


@router.post(
    "/conversations/{row:number}/messages",
    response={201: schemas.Turn},
    openapi_extra=error_statuses(409),
)
async def write(request: AuthRequest, number: int, body: schemas.NewMessage) -> Status[Any]:
    """Adds a message and begins its answer, which is written whether anybody reads it or not."""
    turn = await store.begin_turn(request.auth, number, body.content, body.model)
    await following.begin(turn.answer, turn.job, undo=partial(store.undo_turn, turn))
    return Status(
        201,
        schemas.Turn(
            user_message=schemas.Message.from_orm(turn.question),
            assistant_message=schemas.Message.from_orm(turn.answer),
        ),
    )


@router.get("/conversations/{row:number}/messages/{row:message}/stream")
async def stream(request: AuthRequest, number: int, message: int) -> HttpResponseBase:
    """An answer as server-sent events: the text so far, then the rest. Any number may read it."""
    answer = await store.message(request.auth, number, message)
    return sse.EventStream(events.of(answer, following.follow(answer)), endless=True)


@router.post("/conversations/{row:number}/messages/{row:message}/stop", response={204: None})
async def stop(request: AuthRequest, number: int, message: int) -> Status[Any]:
    """Stops an answer and keeps its text."""
    await following.stop(await store.message(request.auth, number, message))
    return Status(204, None)


def _model(name: str) -> schemas.Model:
    supply = app().catalog.supply(name)
    return schemas.Model(
        id=supply.model,
        ready=supply.nodes > 0,
        nodes=supply.nodes,
        slots=supply.slots,
        free=supply.free,
    )


async def _with_messages(conversation: Conversation) -> schemas.Conversation:
    messages = await store.messages(conversation)
    return schemas.Conversation(
        id=conversation.pk,
        title=conversation.title,
        model=conversation.model,
        updated=conversation.updated,
        messages=[schemas.Message.from_orm(message) for message in messages],
        seen_from=store.seen_from_latest(messages),
    )
