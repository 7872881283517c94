"""Every query on drills, and their bounds."""

from datetime import timedelta

from asgiref.sync import sync_to_async
from django.db import IntegrityError, transaction
from django.utils import timezone

from api.operate.drills.models import Drill, State
from broker.drill_messages import DrillCounts

MAX_DRILLS = 100  # stored; older ones are removed
SILENT = timedelta(seconds=20)  # without a sign of life a drill has ended with its process
INTERRUPTED = "the process that conducted it ended"
COUNTS = ("affected", "moved", "returned", "lost", "left", "open", "waiting", "slowest")


class DrillRuns(Exception):
    """Another drill has not ended: one at a time, as their counts would mix. Retryable."""


@sync_to_async
def begin(by: str, node: str, host: str) -> Drill:
    """Stores a drill that runs, and makes room for it. Raises DrillRuns."""
    _end_silent()
    try:
        with transaction.atomic():
            drill = Drill.objects.create(by=by, node=node, host=host)
    except IntegrityError as error:
        raise DrillRuns from error
    surplus = Drill.objects.values_list("pk", flat=True)[MAX_DRILLS:]
    Drill.objects.filter(pk__in=list(surplus)).delete()
    return drill


@sync_to_async
def latest(limit: int) -> list[Drill]:
    """The newest drills. Those whose process died have failed."""
    _end_silent()
    return list(Drill.objects.all()[:limit])


async def note(drill: Drill, counts: DrillCounts, processes: int, back: float | None) -> None:
    """How far it is, and that its process lives."""
    values = {name: getattr(counts, name) for name in COUNTS}
    drill.processes, drill.back, drill.updated = processes, back, timezone.now()
    for name, value in values.items():
        setattr(drill, name, value)
    await drill.asave(update_fields=[*COUNTS, "processes", "back", "updated"])


async def finish(drill: Drill, state: str, note: str = "") -> None:
    """It has ended."""
    drill.state, drill.note = state, note[:300]
    drill.updated = timezone.now()
    await drill.asave(update_fields=["state", "note", "updated"])


def _end_silent() -> None:
    rows = Drill.objects.filter(state=State.RUNNING, updated__lt=timezone.now() - SILENT)
    if rows.exists():  # every open dashboard reads twice a second: no write lock for nothing
        rows.update(state=State.FAILED, note=INTERRUPTED)
