"""API keys: `canopy_<name>_<secret>`, checked against their digest, cached for a second."""

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
CACHE_SECONDS = 1.0  # a revocation, and a disabled user, take as long to be noticed
_CAPACITY = 10_000
_LAST_USED_EVERY = timezone.timedelta(minutes=1)


@dataclass(frozen=True, slots=True)
class _Verified:
    user: User
    until: float  # time.monotonic()


def create(user: User, label: str = "") -> str:
    """A new key. Only its digest is stored, so it cannot be shown again."""
    name = secrets.token_hex(4)
    key = f"{PREFIX}_{name}_{secret.make()}"
    ApiKey.objects.create(user=user, name=name, label=label, digest=secret.digest(key))
    return key


class KeyCache:
    """Verified keys by their digest, each believed for CACHE_SECONDS."""

    def __init__(self) -> None:
        self._verified: dict[str, _Verified] = {}
        self._lookup = asyncio.Lock()  # many requests with one new key make one query

    async def verify(self, key: str) -> User | None:
        """The active user whose key this is, or None."""
        digest = secret.digest(key)
        user = self._cached(digest)
        if user is not None:
            return user
        async with self._lookup:
            return self._cached(digest) or await self._look_up(key, digest)

    def clear(self) -> None:
        """The next use of each key asks the database."""
        self._verified.clear()

    async def _look_up(self, key: str, digest: str) -> User | None:
        stored = await _stored_key(key)
        if stored is None or not secret.same(stored.digest, digest) or not stored.user.is_active:
            return None
        if len(self._verified) >= _CAPACITY:
            self._verified.clear()
        self._verified[digest] = _Verified(stored.user, time.monotonic() + CACHE_SECONDS)
        await _note_use(stored)
        return stored.user

    def _cached(self, digest: str) -> User | None:
        verified = self._verified.get(digest)
        if verified is None or verified.until <= time.monotonic():
            return None
        return verified.user


async def _stored_key(key: str) -> ApiKey | None:
    """The row of the key's public part, whatever its secret."""
    prefix, _, rest = key.partition("_")
    name, _, _ = rest.partition("_")
    if prefix != PREFIX or not name.isalnum():
        return None
    rows = ApiKey.objects.select_related("user").filter(name=name[:16], revoked=False)
    return await rows.afirst()


async def _note_use(stored: ApiKey) -> None:
    """Stores when the key was used, about once a minute. A full disk does not make it invalid."""
    now = timezone.now()
    if stored.last_used is not None and stored.last_used >= now - _LAST_USED_EVERY:
        return
    stale = Q(last_used=None) | Q(last_used__lt=now - _LAST_USED_EVERY)
    try:
        await ApiKey.objects.filter(stale, pk=stored.pk).aupdate(last_used=now)
    except DatabaseError as error:
        log.warning("a key's last use could not be stored", reason=str(error))
