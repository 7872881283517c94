"""The chat's endpoints: conversations, messages, live answers."""

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
    offers = [app().catalog.supply(name) for name in await app().catalog.models()]
    return schemas.Models(
        models=[
            schemas.Model(
                id=each.model,
                ready=each.nodes > 0,
                nodes=each.nodes,
                slots=each.slots,
                free=each.free,
            )
            for each in offers
        ],
        default=await app().catalog.default(),
    )


@router.get("/conversations", response=schemas.Summaries)
async def conversations(request: AuthRequest) -> dict[str, list[Conversation]]:
    """My conversations, newest first."""
    return {"conversations": await store.conversations(request.auth)}


@router.post("/conversations", response={201: schemas.Conversation})
async def create(request: AuthRequest, asked: schemas.NewConversation) -> Status[Any]:
    """Begins a conversation."""
    model = asked.model or await app().catalog.default_or_503()
    made = await store.create(request.auth, model)
    return Status(201, await _with_messages(made))


@router.get("/conversations/{row:number}", response=schemas.Conversation)
async def read(request: AuthRequest, number: int) -> schemas.Conversation:
    """A conversation with its messages."""
    found = await store.conversation(request.auth, number)
    return await _with_messages(found)


@router.patch("/conversations/{row:number}", response=schemas.Summary)
async def change(
    request: AuthRequest, number: int, asked: schemas.ConversationChange
) -> Conversation:
    """Renames a conversation, or gives it another model."""
    return await store.change(request.auth, number, asked.title, asked.model)


@router.delete("/conversations/{row:number}", response={204: None})
async def delete(request: AuthRequest, number: int) -> Status[Any]:
    """Removes a conversation; an answer that is being written is stopped."""
    for each in await store.delete(request.auth, number):
        await following.stop(each)
    return Status(204, None)


@router.post(
    "/conversations/{row:number}/messages",
    response={201: schemas.Turn},
    openapi_extra=error_statuses(409),
)
async def write(request: AuthRequest, number: int, asked: schemas.NewMessage) -> Status[Any]:
    """Adds a message and begins the answer to it, which goes on whether anybody reads it or not."""
    turn = await store.begin_turn(request.auth, number, asked.content, asked.model)
    await following.begin(turn.answer, turn.job, undo=lambda: store.undo_turn(turn))
    return Status(
        201,
        schemas.Turn(
            user_message=schemas.Message.from_orm(turn.asked),
            assistant_message=schemas.Message.from_orm(turn.answer),
        ),
    )


@router.get("/conversations/{row:number}/messages/{row:message}/stream")
async def stream(request: AuthRequest, number: int, message: int) -> HttpResponseBase:
    """An answer as server-sent events: all there is, then what comes. Can be attached to any number of times."""
    found = await store.message(request.auth, number, message)
    return sse.EventStream(events.of(found, following.follow(found)), endless=True)


@router.post("/conversations/{row:number}/messages/{row:message}/stop", response={204: None})
async def stop(request: AuthRequest, number: int, message: int) -> Status[Any]:
    """Stops an answer and keeps its text."""
    await following.stop(await store.message(request.auth, number, message))
    return Status(204, None)


async def _with_messages(conversation: Conversation) -> schemas.Conversation:
    messages = await store.messages(conversation)
    return schemas.Conversation(
        id=conversation.pk,
        title=conversation.title,
        model=conversation.model,
        updated=conversation.updated,
        messages=[schemas.Message.from_orm(each) for each in messages],
        seen_from=store.seen_from_latest(messages),
    )
