"""Stored responses as clients see them, and the dialogue that they make."""

from typing import Any

from api.accounts.models import User
from api.answers.record import Status
from api.answers.store import current
from api.context import app
from api.errors import ApiError
from api.http.parsing import MAX_ECHOED
from api.responses import items, store
from api.responses.functions import use_of
from api.responses.models import StoredResponse
from api.responses.progress import Progress
from api.responses.shapes import PREFIX, Shape, name_of
from broker.wire import Delta, Job, Start

Item = dict[str, Any]


def progress_of(row: StoredResponse) -> Progress:
    """What its answer's frames become."""
    parameters = row.parameters
    job = Job(
        request_id=row.request_id,
        model=parameters["model"],
        reply_to="",
        created=parameters["created_at"],
        messages=(),
    )
    job = use_of(parameters["tools"], parameters["tool_choice"]).apply(job)
    completed = row.touched.timestamp() if row.status == Status.DONE else None
    return Progress(job, Shape(row.name, parameters), completed)


def response_of(row: StoredResponse) -> dict[str, Any]:
    """The response object as far as it is stored, or known to who writes it here."""
    if row.status == Status.STREAMING:
        writer = app().writers.get(row.handle)
        runs = row.node if writer is None else writer.record.node
        shape = Shape(row.name, row.parameters)
        return shape.unfinished("in_progress" if runs else "queued")
    progress = _ended(row)
    if progress.response is None:
        raise AssertionError("an answer that has ended has no end")
    return progress.response


async def use_stored_end(row: StoredResponse, progress: Progress) -> None:
    """The response that was followed gets the moment of its end that later readers get."""
    ended = await current(row)
    if ended is not None and progress.completed_at is not None:
        progress.completed_at = int(ended.touched.timestamp())


def items_of(row: StoredResponse) -> list[Item]:
    """Its input and its output, as a dialogue goes on from them."""
    if row.status == Status.FAILED:
        return list(row.input)
    return [*row.input, *_ended(row).output.items]


async def resolved(user: User, sent: list[Item]) -> list[Item]:
    """The items with what they refer to in place of references. Raises ApiError 400."""
    references = [item["id"] for item in sent if item["type"] == "item_reference"]
    if not references:
        return sent
    names = {name for name in map(items.response_of, references) if name is not None}
    rows = await store.find_all(user, names)
    known = {item["id"]: item for row in rows.values() for item in items_of(row)}
    whole: list[Item] = []
    for index, item in enumerate(sent):
        if item["type"] != "item_reference":
            whole.append(item)
        elif item["id"] in known:
            whole.append(known[item["id"]])
        else:
            raise _no_such_item(item["id"], index)
    return whole


async def history(user: User, response_id: str) -> list[Item]:
    """The dialogue up to the end of that response. Raises ApiError 400."""
    rows = await store.chain(user, name_of(response_id))
    if not rows:
        raise _no_previous(f"there is no response {response_id[:MAX_ECHOED]!r} of yours")
    if rows[0].previous:
        raise _no_previous(_why_incomplete(rows))
    if any(row.status == Status.STREAMING for row in rows):
        raise _no_previous("the response is not complete yet; wait for its end, or cancel it")
    dialogue: list[Item] = []
    for row in rows:
        dialogue += items_of(row)
    return dialogue


def _ended(row: StoredResponse) -> Progress:
    progress = progress_of(row)
    progress.take(
        Start(
            request_id=row.request_id,
            node=row.node,
            tool_format=row.tool_format,
            reasoning_format=row.reasoning_format,
        )
    )
    progress.take(Delta(request_id=row.request_id, text=row.content))
    progress.take(row.ending())
    return progress


def _why_incomplete(rows: list[Any]) -> str:
    last = rows[0]
    if last.depth >= store.MOST_TURNS or last.size >= store.MOST_BYTES:
        return "the dialogue is too long to be continued; send its newest turns as input"
    name = f"{PREFIX}{last.previous}"
    return f"the dialogue began with {name}, which was deleted or has expired"


def _no_previous(reason: str) -> ApiError:
    return ApiError(
        400,
        f"previous_response_id: {reason}",
        field="previous_response_id",
        code="previous_response_not_found",
    )


def _no_such_item(item_id: str, index: int) -> ApiError:
    field = f"input[{index}].id"
    message = f"{field}: there is no item {item_id[:MAX_ECHOED]!r} in your stored responses"
    return ApiError(400, message, field=field, code="item_not_found")
