"""Every query on replays."""

from collections.abc import Collection, Sequence
from datetime import timedelta

from asgiref.sync import sync_to_async
from django.db import transaction
from django.utils import timezone

from api.operate.dead.models import DeadReplay, State
from api.storage.text import storable
from broker.dead_replay import Outcome
from broker.wire import Job

MAX_REPLAYS = 1_000  # stored; older ones are removed
LONGEST_ANSWER = 20_000  # characters
SILENT = timedelta(seconds=20)  # without a sign of life a replay has ended with its process
INTERRUPTED = "its API process ended; the letter is back"
_UNFINISHED = (State.WAITING, State.RUNNING)


@sync_to_async
@transaction.atomic
def create(by: str, letters: Sequence[str], jobs: Sequence[Job]) -> list[DeadReplay]:
    """Stores replays that wait, one for each job, and makes room for them."""
    replays = []
    for letter, job in zip(letters, jobs, strict=True):
        replays.append(
            DeadReplay.objects.create(
                letter=storable(letter),
                request_id=job.request_id,
                model=storable(job.model),
                user=storable(job.user),
                by=by,
            )
        )
    surplus = DeadReplay.objects.values_list("pk", flat=True)[MAX_REPLAYS:]
    DeadReplay.objects.filter(pk__in=list(surplus)).delete()
    return replays


async def latest(limit: int) -> list[DeadReplay]:
    """The newest replays, without answers. Those of processes that died have failed."""
    rows = DeadReplay.objects.filter(state__in=_UNFINISHED, updated__lt=timezone.now() - SILENT)
    await rows.aupdate(state=State.FAILED, error=INTERRUPTED)
    return [row async for row in DeadReplay.objects.defer("answer")[:limit]]


async def get(key: int) -> DeadReplay | None:
    """One replay, with its answer."""
    return await DeadReplay.objects.filter(pk=key).afirst()


async def note_alive(keys: Collection[int]) -> None:
    """These still wait or run."""
    await DeadReplay.objects.filter(pk__in=keys).aupdate(updated=timezone.now())


async def note_progress(key: int, tokens: int, node: str) -> None:
    """It runs."""
    await DeadReplay.objects.filter(pk=key).aupdate(
        state=State.RUNNING, tokens=tokens, node=storable(node), updated=timezone.now()
    )


async def finish(key: int, outcome: Outcome, *, given: bool) -> None:
    """It has ended. `given`: its user has the answer."""
    state = State.ANSWERED if outcome.error is None else State.FAILED
    await DeadReplay.objects.filter(pk=key).aupdate(
        state=state,
        tokens=outcome.tokens,
        node=storable(outcome.node),
        error=storable((outcome.error or "")[:1000]),
        given=given,
        answer=storable(outcome.text[:LONGEST_ANSWER]),
        updated=timezone.now(),
    )
