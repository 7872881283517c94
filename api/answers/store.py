"""The queries on stored answers. A streaming one is changed by its owner, by who takes it over, and by who stops it."""

from collections.abc import Iterable
from datetime import datetime, timedelta
from typing import Any, TypeVar

from asgiref.sync import sync_to_async
from django.db.models import F
from django.utils import timezone

from api.answers import process
from api.answers.record import Status, StoredAnswer

SILENT = timedelta(
    seconds=30
)  # an answer whose owner has not touched it for this long has no owner any more

Stored = TypeVar("Stored", bound=StoredAnswer)


def _rows(record: StoredAnswer) -> Any:
    return type(record)._default_manager.filter(pk=record.pk)


async def save(record: StoredAnswer) -> bool:
    """Stores an answer as far as it is written; False if it is not this process's to write any more."""
    record.touched = timezone.now()
    fields = {
        name: getattr(record, name)
        for name in (
            "content",
            "status",
            "error",
            "error_code",
            "retryable",
            "finish_reason",
            "prompt_tokens",
            "completion_tokens",
            "omitted_messages",
            "touched",
        )
    }
    going_on = (
        {"ids": record.ids} if record.status == Status.STREAMING else {"ids": [], "job": None}
    )
    mine = _rows(record).filter(status=Status.STREAMING, owner=process.identity())
    return bool(await mine.aupdate(**fields, **going_on))


async def current(record: Stored) -> Stored | None:
    """The answer as it is stored now; None if it was removed."""
    return await _rows(record).afirst()


async def save_text_of_stopped(record: StoredAnswer) -> None:
    """Stores the text of an answer that another process has stopped meanwhile."""
    await (
        _rows(record)
        .filter(status=Status.STOPPED, owner=process.identity())
        .aupdate(content=record.content)
    )


async def stop(record: StoredAnswer) -> None:
    """Stops an answer that is not written here: its writer notices when it saves the next time."""
    await (
        _rows(record)
        .filter(status=Status.STREAMING)
        .aupdate(status=Status.STOPPED, finish_reason="cancelled", ids=[], job=None)
    )


def is_orphan(owner: str, touched: datetime) -> bool:
    """True for a streaming answer that nobody writes any more."""
    return touched < timezone.now() - SILENT or not process.may_live(owner)


@sync_to_async
def orphans(kind: type[Stored], written_here: Iterable[tuple[str, int]]) -> list[Stored]:
    """The streaming answers that nobody writes any more, oldest first."""
    streaming = kind._default_manager.filter(status=Status.STREAMING)
    lost = {
        pk
        for pk, owner, touched in streaming.values_list("pk", "owner", "touched")
        if is_orphan(owner, touched)
    }
    lost -= {pk for label, pk in written_here if label == kind._meta.label}
    return list(streaming.filter(pk__in=lost).order_by("pk")) if lost else []


async def claim(record: StoredAnswer) -> bool:
    """Makes this process the owner, unless another one was faster or the former owner has stirred."""
    now = timezone.now()
    as_seen = _rows(record).filter(
        status=Status.STREAMING, owner=record.owner, touched=record.touched
    )
    if not await as_seen.aupdate(
        owner=process.identity(), touched=now, takeovers=F("takeovers") + 1
    ):
        return False
    record.owner, record.touched, record.takeovers = process.identity(), now, record.takeovers + 1
    return True


async def release(record: StoredAnswer, touched: datetime) -> None:
    """Gives up the ownership; `touched`: when the answer was written the last time."""
    mine = _rows(record).filter(status=Status.STREAMING, owner=process.identity())
    await mine.aupdate(owner="", touched=touched)


async def release_all(kinds: Iterable[type[StoredAnswer]]) -> None:
    """Gives up the ownership of all answers: the next process takes them over at once."""
    for kind in kinds:
        mine = kind._default_manager.filter(status=Status.STREAMING, owner=process.identity())
        await mine.aupdate(owner="")
