"""Every query on models' settings, and this process's copy of them."""

import asyncio
from dataclasses import asdict, dataclass, fields
from typing import Any

import msgspec
import structlog
from asgiref.sync import sync_to_async
from django.db import DatabaseError
from django.db.models import QuerySet

from api.errors import ApiError
from api.operate.models.models import AutoscaleRule, ModelSettings
from broker.announcements import Announcements
from broker.wire import Job, Sampling
from topology.autoscale import Rule

log = structlog.get_logger("canopy.api")

SETTING = "models"
MAX_MODELS = 1_000
AGAIN_SECONDS = 5.0  # until a failed reading is repeated


@dataclass(frozen=True, slots=True, kw_only=True)
class Card:
    """See ModelSettings."""

    description: str = ""
    max_tokens: int | None = None
    most_tokens: int | None = None
    most_requests: int | None = None
    temperature: float | None = None
    top_p: float | None = None
    top_k: int | None = None
    min_p: float | None = None
    repetition_penalty: float | None = None
    frequency_penalty: float | None = None
    presence_penalty: float | None = None


NO_CARD = Card()
CARD_FIELDS = tuple(field.name for field in fields(Card))


class Cards:
    """The settings of all models. Each API process keeps a copy, fresh by announcements."""

    def __init__(self, announcements: Announcements) -> None:
        self._announcements = announcements
        self._cards: dict[str, Card] = {}
        self._stale = asyncio.Event()
        self._stale.set()
        announcements.listen(SETTING, self._stale.set)

    def of(self, model: str) -> Card:
        """The model's settings."""
        return self._cards.get(model, NO_CARD)

    def apply(self, job: Job) -> Job:
        """The job with the model's defaults where it says nothing, and within its limits."""
        sampling = applied(self.of(job.model), job.sampling)
        if sampling is job.sampling:
            return job
        return msgspec.structs.replace(job, sampling=sampling)

    async def put(self, model: str, card: Card) -> None:
        """Stores a model's settings, and tells the other processes."""
        await store_card(model, card)
        self._cards = await stored_cards()
        self._announcements.announce(SETTING)

    async def keep_fresh(self) -> None:
        """Reads again whenever another process may have changed something. Never ends."""
        while True:
            await self._stale.wait()
            self._stale.clear()
            try:
                self._cards = await stored_cards()
            except DatabaseError as error:  # not migrated yet, or away: /readyz says so
                log.warning("models' settings are read later", reason=str(error))
                await asyncio.sleep(AGAIN_SECONDS)
                self._stale.set()


def applied(card: Card, sampling: Sampling) -> Sampling:
    """The sampling with the card's defaults where a request left them out, and its limits."""
    changes: dict[str, Any] = {}
    for name in sampling.defaulted:
        default = getattr(card, name)
        if default is not None:
            changes[name] = default
    if sampling.defaulted:
        changes["defaulted"] = ()
    tokens = sampling.max_tokens
    if tokens is None:
        tokens = card.max_tokens
    if card.most_tokens is not None:
        tokens = min(tokens or card.most_tokens, card.most_tokens)
    if tokens != sampling.max_tokens:
        changes["max_tokens"] = tokens
    if not changes:
        return sampling
    return msgspec.structs.replace(sampling, **changes)


@sync_to_async
def stored_cards() -> dict[str, Card]:
    """Every model's settings, by model."""
    cards = {}
    for row in ModelSettings.objects.all()[:MAX_MODELS]:
        cards[row.model] = Card(**{name: getattr(row, name) for name in CARD_FIELDS})
    return cards


async def store_card(model: str, card: Card) -> None:
    """Stores a model's settings. Raises ApiError 409."""
    await _check_room(ModelSettings.objects.exclude(model=model))
    await ModelSettings.objects.aupdate_or_create(model=model, defaults=asdict(card))


@sync_to_async
def stored_rules() -> dict[str, Rule]:
    """Every autoscaling rule, by model."""
    rules = {}
    for row in AutoscaleRule.objects.all()[:MAX_MODELS]:
        rules[row.model] = Rule(
            least=row.least, most=row.most, target_wait=row.target_wait, cooldown=row.cooldown
        )
    return rules


async def store_rule(model: str, rule: Rule) -> None:
    """Stores a model's rule. Raises ApiError 409."""
    await _check_room(AutoscaleRule.objects.exclude(model=model))
    await AutoscaleRule.objects.aupdate_or_create(model=model, defaults=asdict(rule))


async def _check_room(others: QuerySet[Any]) -> None:
    if await others.acount() >= MAX_MODELS:
        raise ApiError(409, f"{MAX_MODELS} models have settings already", code="refused")


async def remove_rule(model: str) -> bool:
    """Removes a model's rule; False if there was none."""
    deleted, _ = await AutoscaleRule.objects.filter(model=model).adelete()
    return bool(deleted)
