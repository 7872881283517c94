"""API keys: `canopy_<name>_<secret>`, checked against their digest, remembered for a few seconds."""

import asyncio
import secrets
import time
from dataclasses import dataclass

import structlog
from django.db import DatabaseError
from django.db.models import Q
from django.utils import timezone

from api.accounts import secret
from api.accounts.models import ApiKey, User

log = structlog.get_logger("canopy.api")

PREFIX = "canopy"
REMEMBER = 20.0  # seconds a verified key is believed without asking the database; a revocation takes as long
_CAPACITY = 10_000
_LAST_USED_EVERY = timezone.timedelta(minutes=1)


@dataclass(frozen=True, slots=True)
class _Verified:
    user: User
    until: float  # time.monotonic()


_verified: dict[str, _Verified] = {}
_looking_up = asyncio.Lock()


def create(user: User) -> str:
    """Makes a key and returns it; only its digest is stored, so it cannot be shown again."""
    name = secrets.token_hex(4)
    key = f"{PREFIX}_{name}_{secret.make()}"
    ApiKey.objects.create(user=user, name=name, digest=secret.digest(key))
    return key


async def verify(key: str) -> User | None:
    """The active user whose key this is, or None."""
    digest = secret.digest(key)
    user = _remembered(digest)
    if user is not None:
        return user
    async with _looking_up:  # a thousand requests that arrive together with one key ask once
        return _remembered(digest) or await _look_up(key, digest)


def forget_all() -> None:
    """Drops what is remembered: the next use of each key asks the database."""
    _verified.clear()


async def _look_up(key: str, digest: str) -> User | None:
    prefix, _, rest = key.partition("_")
    name, _, _ = rest.partition("_")
    if prefix != PREFIX or not name.isalnum():
        return None
    stored = (
        await ApiKey.objects.select_related("user").filter(name=name[:16], revoked=False).afirst()
    )
    if stored is None or not secret.same(stored.digest, digest) or not stored.user.is_active:
        return None
    _remember(digest, stored.user)
    await _note_use(stored)
    return stored.user


async def _note_use(stored: ApiKey) -> None:
    """Not with a full disk: the key is valid all the same."""
    now = timezone.now()
    stale = Q(last_used=None) | Q(last_used__lt=now - _LAST_USED_EVERY)
    try:
        await ApiKey.objects.filter(stale, pk=stored.pk).aupdate(last_used=now)
    except DatabaseError as error:
        log.warning("a key's last use could not be stored", reason=str(error))


def _remembered(digest: str) -> User | None:
    known = _verified.get(digest)
    return known.user if known is not None and known.until > time.monotonic() else None


def _remember(digest: str, user: User) -> None:
    if len(_verified) >= _CAPACITY:
        _verified.clear()
    _verified[digest] = _Verified(user, time.monotonic() + REMEMBER)
