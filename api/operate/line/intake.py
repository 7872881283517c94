"""Which models take no new requests, as operators have decided.

Stored in the database, so that it outlives every process; each API process keeps a copy, which the
others' announcements keep fresh. What waits or runs already goes on.
"""

import asyncio
from collections.abc import Callable, Mapping

import structlog
from asgiref.sync import sync_to_async
from django.db import DatabaseError

from api.errors import ApiError
from api.http.parsing import MAX_ECHOED
from api.operate.line.models import PausedModel
from broker.announcements import Announcements

log = structlog.get_logger("canopy.api")

SETTING = "intake"
MAX_PAUSED = 1_000  # models
RETRY_AFTER = 30  # seconds that a refused client is asked to wait
AGAIN_SECONDS = 5.0  # until a failed reading is repeated


class Intake:
    """See the module."""

    def __init__(self, announcements: Announcements) -> None:
        self._announcements = announcements
        self._paused: dict[str, str] | None = None  # model -> reason; None: not read yet
        self._stale = asyncio.Event()
        self._stale.set()
        self._listeners: list[Callable[[], None]] = []
        announcements.listen(SETTING, self._stale.set)

    async def check(self, model: str) -> None:
        """Raises ApiError 503 if the model takes no new requests."""
        if self._paused is None:
            await self._read()
        reason = self.paused().get(model)
        if reason is not None:
            raise refusal(model, reason)

    def paused(self) -> Mapping[str, str]:
        """The paused models with the reasons, which may be empty."""
        return self._paused or {}

    async def pause(self, model: str, reason: str, who: str) -> None:
        """Takes no new requests for that model from now on. Raises ApiError 409."""
        await store_pause(model, reason, who)
        await self._changed()

    async def resume(self, model: str) -> bool:
        """Takes requests for that model again; False if it did already."""
        was_paused = await store_resume(model)
        await self._changed()
        return was_paused

    async def keep_fresh(self) -> None:
        """Reads again whenever another process may have changed something. Never ends."""
        while True:
            await self._stale.wait()
            self._stale.clear()
            try:
                await self._read()
            except DatabaseError as error:  # not migrated yet, or away: /readyz says so
                log.warning("paused models are read later", reason=str(error))
                await asyncio.sleep(AGAIN_SECONDS)
                self._stale.set()

    async def _changed(self) -> None:
        await self._read()
        self._announcements.announce(SETTING)

    def listen(self, listener: Callable[[], None]) -> None:
        """Calls `listener` when the set of paused models has changed."""
        self._listeners.append(listener)

    async def _read(self) -> None:
        former, self._paused = self._paused, await stored()
        if former != self._paused:
            for listener in self._listeners:
                listener()


async def store_pause(model: str, reason: str, who: str) -> None:
    """Stores that a model is paused; the processes have to be told. Raises ApiError 409."""
    others = PausedModel.objects.exclude(model=model)
    if await others.acount() >= MAX_PAUSED:
        message = f"{MAX_PAUSED} models are paused already; resume some first"
        raise ApiError(409, message, code="refused")
    fields = {"reason": reason, "who": who}
    await PausedModel.objects.aupdate_or_create(model=model, defaults=fields)


async def store_resume(model: str) -> bool:
    """Stores that a model is not paused; False if it was not."""
    deleted, _ = await PausedModel.objects.filter(model=model).adelete()
    return bool(deleted)


@sync_to_async
def stored() -> dict[str, str]:
    """The paused models with their reasons, as the database has them."""
    return dict(PausedModel.objects.values_list("model", "reason")[:MAX_PAUSED])


def refusal(model: str, reason: str) -> ApiError:
    """503: an operator has paused the model."""
    because = f": {reason}" if reason else ""
    return ApiError(
        503,
        f"model {model[:MAX_ECHOED]!r} takes no new requests now, an operator paused it{because}",
        field="model",
        code="model_paused",
        headers={"Retry-After": str(RETRY_AFTER)},
    )
