"""The chat's endpoints: conversations, messages, live answers."""

import asyncio
from functools import partial
from typing import Annotated, Any

from django.http.response import HttpResponseBase
from ninja import Query, Router, Status

from api.accounts.auth import AuthRequest, Member
from api.answers import following
from api.chat import conversation_list, events, schemas, store, turns
from api.chat.conversation_list import Selection
from api.chat.models import Conversation
from api.context import app
from api.http import sse
from api.http.documentation import error_statuses
from api.preferences import store as preferences

router = Router(tags=["chat"], auth=Member())


@router.get("/models", response=schemas.Models)
async def models(request: AuthRequest) -> schemas.Models:
    """Every model that writes answers, and whether a node serves it now."""
    catalog = app().catalog
    models = [_model(name) for name in await catalog.models() if catalog.writes(name)]
    return schemas.Models(models=models, default=await catalog.default())


@router.get("/conversations", response=schemas.Page)
async def conversations(
    request: AuthRequest, query: Annotated[schemas.ListQuery, Query()]
) -> dict[str, Any]:
    """A part of my conversations: those of no folder, of `folder`, or the archived ones.

    `through`: the part goes on to this conversation, as far as 1000 of them reach.
    """
    selection = Selection(query.folder, query.archived)
    page = await conversation_list.page(
        request.auth, selection, query.cursor, query.limit, query.through
    )
    counts = await conversation_list.counts(request.auth)
    folders = [{"name": name, "count": count} for name, count in counts.folders]
    return {
        "conversations": page.conversations,
        "next": page.next,
        "folders": folders,
        "archived": counts.archived,
    }


@router.post(
    "/conversations", response={201: schemas.Conversation}, openapi_extra=error_statuses(404)
)
async def create(request: AuthRequest, body: schemas.NewConversation) -> Status[Any]:
    """Begins a conversation, with its first message and an answer to that if there is `content`."""
    model = body.model or await app().catalog.default_or_503()
    most = app().plans.of(request.auth).conversations
    conversation = await store.create(request.auth, model, most, temporary=body.temporary)
    await _begin_first(request, conversation, body)
    conversation = await store.conversation(request.auth, conversation.pk)
    app().hub.publish(request.auth.pk, conversation.pk, "created")
    return Status(201, await _with_messages(conversation))


async def _begin_first(
    request: AuthRequest, conversation: Conversation, body: schemas.NewConversation
) -> None:
    """Applies the preset and sends the first message; refused, the conversation goes, too."""
    draft = body.draft()
    try:
        if body.preset is not None:
            await preferences.apply_preset(request.auth, conversation.pk, body.preset)
        if draft is not None:
            await _begin(await turns.ask(request.auth, conversation.pk, draft))
    except BaseException:
        await asyncio.shield(conversation_list.discard(conversation))
        raise


@router.get("/conversations/{row:number}", response=schemas.Conversation)
async def read(request: AuthRequest, number: int) -> schemas.Conversation:
    """A conversation with its messages."""
    return await _with_messages(await store.conversation(request.auth, number))


@router.patch("/conversations/{row:number}", response=schemas.Branch)
async def change(
    request: AuthRequest, number: int, body: schemas.ConversationChange
) -> schemas.Branch:
    """Changes the fields that are given.

    Renames a conversation, gives it another model or place, or shows another branch of it.
    """
    changed, compared = await store.change(request.auth, number, body.title, body.model, body.head)
    if body.place():
        await conversation_list.change_many(request.auth, [number], body.place())
        changed = await store.conversation(request.auth, number)
    app().hub.publish(request.auth.pk, number)
    for message in compared:
        app().hub.publish(request.auth.pk, number, "updated", message)
    transcript = await store.transcript(changed)
    return schemas.Branch(**_summary(changed), head=transcript.head, seen_from=transcript.seen_from)


@router.delete("/conversations/{row:number}", response={204: None})
async def delete(request: AuthRequest, number: int) -> Status[Any]:
    """Deletes a conversation, for an hour with a way back; stops an answer that is written."""
    deleted = await conversation_list.delete(request.auth, [number])
    if not deleted.numbers:
        raise store.no_conversation()
    for answer in deleted.unfinished:
        await following.stop(answer)
    app().hub.publish(request.auth.pk, number, "deleted")
    return Status(204, None)


@router.post(
    "/conversations/{row:number}/messages",
    response={201: schemas.Turn},
    openapi_extra=error_statuses(409),
)
async def write(request: AuthRequest, number: int, body: schemas.NewMessage) -> Status[Any]:
    """Adds a message and begins its answer, which is written whether anybody reads it or not.

    409, `stale_view`: the conversation's head is not the one that the sender saw.
    """
    return await _begin(await turns.ask(request.auth, number, body.draft()))


@router.post(
    "/conversations/{row:number}/messages/{row:message}/regenerate",
    response={201: schemas.Turn},
    openapi_extra=error_statuses(409),
)
async def regenerate(
    request: AuthRequest, number: int, message: int, body: schemas.Regeneration
) -> Status[Any]:
    """Begins another answer to the question that this message answers, or is."""
    turn = await turns.regenerate(request.auth, number, message, body.model, beside=body.beside)
    return await _begin(turn)


@router.post(
    "/conversations/{row:number}/messages/{row:message}/continue",
    response={201: schemas.Turn},
    openapi_extra=error_statuses(409),
)
async def resume(request: AuthRequest, number: int, message: int) -> Status[Any]:
    """Lets an answer go on that was stopped, has failed, or was cut at its longest length."""
    return await _begin(await turns.resume(request.auth, number, message))


@router.get("/conversations/{row:number}/messages/{row:message}/stream")
async def stream(request: AuthRequest, number: int, message: int) -> HttpResponseBase:
    """An answer as server-sent events: the text so far, then the rest. Several may read it."""
    answer = await store.message(request.auth, number, message)
    counted = await app().answer_streams.open(request.auth.pk, answer.handle)
    return sse.EventStream(events.of(answer, following.follow(answer)), counted, endless=True)


@router.post("/conversations/{row:number}/messages/{row:message}/stop", response={204: None})
async def stop(request: AuthRequest, number: int, message: int) -> Status[Any]:
    """Stops an answer and keeps its text."""
    await following.stop(await store.message(request.auth, number, message))
    return Status(204, None)


def _model(name: str) -> schemas.Model:
    catalog = app().catalog
    supply = catalog.supply(name)
    pause_reason = app().intake.paused().get(name)
    card = app().cards.of(name)
    return schemas.Model(
        id=name,
        ready=supply.nodes > 0,
        nodes=supply.nodes,
        slots=supply.slots,
        free=supply.free,
        waiting=catalog.waiting(name),
        context=catalog.context_lengths().get(name),
        paused=pause_reason is not None,
        pause_reason=pause_reason or "",
        description=card.description,
        longest_answer=card.most_tokens,
    )


async def _begin(turn: turns.Turn) -> Status[Any]:
    await following.begin(turn.answer, turn.job, undo=partial(turns.undo, turn))
    for message in turn.changed:
        app().hub.publish(turn.conversation.user_id, turn.conversation.pk, "updated", message)
    begun = schemas.Turn(
        user_message=schemas.Message.of(turn.question),
        assistant_message=schemas.Message.of(turn.answer),
    )
    return Status(201, begun)


def _summary(conversation: Conversation) -> dict[str, Any]:
    return {
        "id": conversation.pk,
        "title": conversation.title,
        "model": conversation.model,
        "updated": conversation.updated,
        "pinned": conversation.pinned,
        "archived": conversation.archived,
        "folder": conversation.folder,
        "temporary": conversation.temporary,
    }


async def _with_messages(conversation: Conversation) -> schemas.Conversation:
    version = await store.version(conversation)  # before the messages: too old is harmless
    transcript = await store.transcript(conversation)
    return schemas.Conversation(
        **_summary(conversation),
        head=transcript.head,
        seen_from=transcript.seen_from,
        messages=[schemas.Message.of(message) for message in transcript.messages],
        version=version,
        preset=await preferences.preset_of(conversation.pk),
    )
