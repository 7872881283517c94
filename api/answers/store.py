"""The queries on stored answers.

A streaming answer is changed by its owner, by the process that takes it over, and by a stop.
"""

from collections.abc import Iterable
from datetime import datetime, timedelta
from typing import Any, TypeVar

from asgiref.sync import sync_to_async
from django.db import models
from django.db.models import F, Q
from django.utils import timezone

from api.answers import process
from api.answers.record import MAX_FORMAT, Status, StoredAnswer
from api.storage.text import storable
from broker.wire import Finished, Start

SILENT = timedelta(seconds=30)  # without a heartbeat, an answer has no owner any more

Stored = TypeVar("Stored", bound=StoredAnswer)

_SAVED_FIELDS = (
    "content",
    "status",
    "error",
    "error_code",
    "retryable",
    "finish_reason",
    "prompt_tokens",
    "cached_tokens",
    "completion_tokens",
    "omitted_messages",
    "node",
    "tool_format",
    "reasoning_format",
    "moved",
    "trail",
    "ttft_ms",
    "seconds",
    "touched",
)


def _rows(record: StoredAnswer) -> Any:
    return type(record)._default_manager.filter(pk=record.pk)


def _own(rows: Any) -> Any:
    """Those that stream and belong to this process."""
    return rows.filter(status=Status.STREAMING, owner=process.identity())


def _same_job(record: StoredAnswer) -> Any:
    """The row, unless the answer was stopped and goes on with another job since."""
    return _rows(record).filter(request_id=record.request_id)


async def save(record: StoredAnswer) -> bool:
    """Stores an answer as far as it is written; False if this process does not own it any more."""
    record.touched = timezone.now()
    fields = {name: getattr(record, name) for name in _SAVED_FIELDS}
    if record.status == Status.STREAMING:
        fields["ids"] = record.ids
    else:
        fields.update(ids=[], job=None)  # only needed to continue it
    return bool(await _own(_same_job(record)).aupdate(**fields))


async def current(record: Stored) -> Stored | None:
    """The answer as it is stored now; None if it was removed."""
    return await _rows(record).afirst()


async def save_text_of_stopped(record: StoredAnswer) -> None:
    """Stores the text of an answer that another process has stopped meanwhile."""
    stopped = _same_job(record).filter(status=Status.STOPPED, owner=process.identity())
    await stopped.aupdate(content=record.content)


async def answer_failed(
    kinds: Iterable[type[StoredAnswer]],
    request_id: str,
    text: str,
    node: str,
    end: Finished,
    start: Start | None = None,
) -> StoredAnswer | None:
    """Makes this the answer to a request that failed; None if none is stored as failed any more.

    `start`: of the run that began the text; None if the stored text goes on.
    """
    formats: dict[str, str] = {}
    if start is not None:
        formats["tool_format"] = start.tool_format[:MAX_FORMAT]
        formats["reasoning_format"] = start.reasoning_format[:MAX_FORMAT]
    for kind in kinds:
        rows = kind._default_manager.filter(status=Status.FAILED, request_id=request_id)
        record = await rows.afirst()
        if record is None:
            continue
        answered = (
            await _same_job(record)
            .filter(status=Status.FAILED)
            .aupdate(
                content=storable(text),
                status=Status.DONE,
                error=None,
                error_code="",
                retryable=False,
                finish_reason=end.reason,
                prompt_tokens=end.prompt_tokens,
                cached_tokens=end.cached_tokens,
                completion_tokens=end.completion_tokens,
                omitted_messages=end.omitted_messages,
                node=storable(node),
                trail=None,
                # of the run that failed; nobody measured the replay for its user
                moved=0,
                ttft_ms=None,
                seconds=0.0,
                touched=timezone.now(),
                **formats,
            )
        )
        if answered:
            return await current(record)
    return None


async def stop(record: StoredAnswer) -> None:
    """Stops an answer that another process writes: that process notices at its next save."""
    streaming = _rows(record).filter(status=Status.STREAMING)
    await streaming.aupdate(status=Status.STOPPED, finish_reason="cancelled", ids=[], job=None)


def is_orphan(owner: str, touched: datetime) -> bool:
    """True for a streaming answer that no process writes any more."""
    return touched < timezone.now() - SILENT or not process.may_live(owner)


def orphaned(rows: "models.QuerySet[Any]") -> Q:
    """Which of the rows, all with `owner` and `touched`, belong to no process any more.

    However many rows there are, each owner is looked for once.
    """
    owners = rows.order_by().values_list("owner", flat=True).distinct()
    dead = [owner for owner in owners if not process.may_live(owner)]
    return Q(owner__in=dead) | Q(touched__lt=timezone.now() - SILENT)


@sync_to_async
def orphans(kind: type[Stored], written_here: Iterable[tuple[str, int]]) -> list[Stored]:
    """The streaming answers that no process writes any more, oldest first."""
    streaming = kind._default_manager.filter(status=Status.STREAMING)
    own = {pk for label, pk in written_here if label == kind._meta.label}
    lost: list[int] = []
    for pk, owner, touched in streaming.values_list("pk", "owner", "touched"):
        if pk not in own and is_orphan(owner, touched):
            lost.append(pk)
    if not lost:
        return []
    return list(streaming.filter(pk__in=lost).order_by("pk"))


async def claim(record: StoredAnswer) -> bool:
    """Makes this process the owner, unless another was faster or the former owner is back."""
    now = timezone.now()
    unchanged = _rows(record).filter(
        status=Status.STREAMING, owner=record.owner, touched=record.touched
    )
    owner = process.identity()
    if not await unchanged.aupdate(owner=owner, touched=now, takeovers=F("takeovers") + 1):
        return False
    record.owner, record.touched, record.takeovers = owner, now, record.takeovers + 1
    return True


async def release(record: StoredAnswer, touched: datetime) -> None:
    """Gives up the ownership; `touched`: when the answer was last written."""
    await _own(_rows(record)).aupdate(owner="", touched=touched)


async def release_all(kinds: Iterable[type[StoredAnswer]]) -> None:
    """Gives up the ownership of all answers: another process takes them over at once."""
    for kind in kinds:
        await _own(kind._default_manager).aupdate(owner="")
