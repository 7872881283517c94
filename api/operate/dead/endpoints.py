"""Dead letters: the list, one of them, replay, edit and replay, drop, and how replays go."""

from collections.abc import AsyncGenerator
from contextlib import aclosing
from typing import Annotated, Any

from django.http.response import HttpResponseBase
from ninja import Query, Router, Status

from api.accounts.auth import AuthRequest, Staff
from api.context import app
from api.errors import ApiError
from api.http import sse
from api.http.documentation import error_statuses
from api.operate.audit.record import record, recorded
from api.operate.dead import schemas, store
from api.operate.dead.replays import refusal
from api.operate.dead.schemas import (
    DeadContent,
    DeadLetters,
    DeadQuery,
    DropBody,
    Dropped,
    LongestId,
    ReplayAnswer,
    ReplayBody,
    ReplayList,
)
from api.operate.line import prompts
from broker.dead_changes import Changes, editable
from broker.dead_letters import Letter
from broker.errors import BrokerError, NoSuchLetter
from broker.wire import ChatMessage

router = Router(tags=["operate"], auth=Staff())

_NAMED = 5  # ids in one line of the audit log


@router.get("", response=DeadLetters)
async def read(request: AuthRequest, query: Annotated[DeadQuery, Query()]) -> DeadLetters:
    """The oldest letters, without their texts."""
    letters = [schemas.letter(letter) for letter in await _read(query.limit)]
    waiting: int | None = len(letters)
    if waiting == query.limit:
        waiting = (await app().dead_watch.read()).waiting
    return DeadLetters(letters=letters, waiting=waiting, reads_texts=await _reads_texts(request))


@router.get("/stream")
async def stream(request: AuthRequest) -> HttpResponseBase:
    """How many letters there are and the latest replays, as server-sent events."""
    return sse.EventStream(_events(), endless=True)


@router.get("/content", response=DeadContent, openapi_extra=error_statuses(404))
async def content(request: AuthRequest, id: Annotated[LongestId, Query()]) -> DeadContent:
    """One letter with its texts, for those who may see prompts; the audit log names each look."""
    await _check_reads_texts(request)
    async with recorded(request, "look at a dead letter", id):
        try:
            async with app().dead_letters.all() as letters:
                letter = _find(letters, id)
        except BrokerError as error:
            raise refusal(error) from error
    job, raw = None, None
    if letter.job is not None:
        job = editable(letter.job)
    else:
        raw = schemas.raw_text(letter.delivery.body)
    return DeadContent(letter=schemas.letter(letter), job=job, raw=raw)


@router.post("/replay", response={202: ReplayList}, openapi_extra=error_statuses(404))
async def replay(request: AuthRequest, body: ReplayBody) -> Status[Any]:
    """Runs jobs again, in the background; a letter is dropped when its job is answered."""
    changes = _changes(body)
    detail = _ids(body.ids)
    if body.changes is not None:
        changed = ", ".join(sorted(body.changes.model_dump(exclude_none=True)))
        detail = f"{detail} with another {changed}"
    async with recorded(request, "replay dead letters", str(len(body.ids)), detail):
        by = request.auth.get_username()
        rows = await app().replays.start(by, body.ids, changes)
    return Status(202, ReplayList(replays=[schemas.replay(row) for row in rows]))


@router.post("/drop", response=Dropped, openapi_extra=error_statuses(404))
async def drop(request: AuthRequest, body: DropBody) -> Dropped:
    """Removes letters for good: all of those named, or none."""
    if bool(body.ids) == body.all:
        raise ApiError(400, "ids: name letters, or say all", field="ids", code="invalid_value")
    target = str(len(body.ids))
    if body.all:
        target = "all"
    async with recorded(request, "drop dead letters", target, _ids(body.ids)) as entry:
        try:
            async with app().dead_letters.all() as letters:
                chosen = letters
                if body.ids:
                    chosen = [_find(letters, letter_id) for letter_id in set(body.ids)]
                for letter in chosen:
                    letter.drop()
        except BrokerError as error:
            raise refusal(error) from error
        entry.result = f"dropped {len(chosen)}"
    app().dead_watch.touch()
    return Dropped(dropped=len(chosen))


@router.get("/replays", response=ReplayList)
async def replays(request: AuthRequest) -> ReplayList:
    """The latest replays."""
    overview = await app().dead_watch.read()
    return ReplayList(replays=[schemas.replay(row) for row in overview.replays])


@router.get("/replays/{row:number}/answer", response=ReplayAnswer)
async def answer(request: AuthRequest, number: int) -> ReplayAnswer:
    """A replay's answer, for those who may see prompts; the audit log names each look."""
    await _check_reads_texts(request)
    row = await store.get(number)
    if row is None:
        raise ApiError(404, "there is no such replay", field="number", code="not_found")
    await record(request, "look at a replay's answer", row.letter)
    return ReplayAnswer(answer=row.answer)


async def _read(limit: int) -> list[Letter]:
    try:
        async with app().dead_letters.all(limit) as letters:
            return letters
    except BrokerError as error:
        raise refusal(error) from error


def _find(letters: list[Letter], letter_id: str) -> Letter:
    for letter in letters:
        if letter.id == letter_id:
            return letter
    raise NoSuchLetter(letter_id)


async def _reads_texts(request: AuthRequest) -> bool:
    return request.auth.is_superuser or await prompts.allowed()


async def _check_reads_texts(request: AuthRequest) -> None:
    if not await _reads_texts(request):
        message = "only administrators may read what users wrote"
        raise ApiError(403, message, code="administrators_only")


def _changes(body: ReplayBody) -> Changes:
    if body.changes is None:
        return Changes()
    if len(body.ids) != 1:
        message = "changes: only one job can be changed at a time"
        raise ApiError(400, message, field="changes", code="invalid_value")
    changes = body.changes
    messages = None
    if changes.messages is not None:
        messages = tuple(
            ChatMessage(role=turn.role, content=turn.content) for turn in changes.messages
        )
    return Changes(
        model=changes.model, messages=messages, prompt=changes.prompt, sampling=changes.sampling
    )


def _ids(ids: list[str]) -> str:
    """The first ids, for the audit log."""
    named = ", ".join(ids[:_NAMED])
    if len(ids) > _NAMED:
        return f"{named} and {len(ids) - _NAMED} more"
    return named


async def _events() -> AsyncGenerator[bytes]:
    async with aclosing(app().dead_watch.follow()) as overviews:
        async for overview in overviews:
            rows = [schemas.replay(row).model_dump(mode="json") for row in overview.replays]
            changes = {"waiting": overview.waiting, "changes": overview.changes, "replays": rows}
            yield sse.event("dead", changes)
