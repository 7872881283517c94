"""API keys that were verified, believed for half a second."""

import asyncio
import time
from collections import OrderedDict
from dataclasses import dataclass

import structlog
from django.db import DatabaseError
from django.db.models import Q
from django.utils import timezone

from api.accounts import keys, secret
from api.accounts.guesses import Guesses
from api.accounts.models import ApiKey, User
from api.accounts.scopes import KeyScope
from api.http.parsing import served_model

log = structlog.get_logger("canopy.api")

SETTING = "keys"  # announced when one was revoked
CACHE_SECONDS = 0.5  # a revocation, and a disabled user, take as long to be noticed
_CAPACITY = 10_000
_LAST_USED_EVERY = timezone.timedelta(minutes=1)


@dataclass(frozen=True, slots=True)
class Owner:
    """Whose a key is, and what it may do."""

    user: User
    scope: KeyScope


@dataclass(frozen=True, slots=True)
class _Verified:
    owner: Owner
    until: float  # time.monotonic()


class KeyCache:
    """Verified keys by their digest, each believed for CACHE_SECONDS."""

    def __init__(self, guesses: Guesses) -> None:
        self._guesses = guesses
        self._verified: dict[str, _Verified] = {}
        self._right: OrderedDict[str, None] = OrderedDict()  # digests of keys that were valid
        self._lookup = asyncio.Lock()  # many requests with one new key make one query

    async def verify(self, key: str, address: str = "") -> Owner | None:
        """Whose key this is, if it is valid. Raises ApiError 429 for too many wrong ones."""
        digest = secret.digest(key)
        owner = self._cached(digest)
        if owner is not None:
            return owner
        if digest not in self._right:
            self._guesses.check(address, digest)
        async with self._lookup:
            owner = self._cached(digest) or await self._look_up(key, digest)
        if owner is None:
            self._guesses.wrong(address, digest)
        return owner

    def clear(self) -> None:
        """The next use of each key asks the database."""
        self._verified.clear()

    async def _look_up(self, key: str, digest: str) -> Owner | None:
        stored = await _stored_key(key)
        if stored is None or not secret.same(stored.digest, digest) or not stored.user.is_active:
            self._right.pop(digest, None)
            return None
        if len(self._verified) >= _CAPACITY:
            self._verified.clear()
        owner = Owner(stored.user, _scope(stored))
        self._verified[digest] = _Verified(owner, time.monotonic() + CACHE_SECONDS)
        self._right[digest] = None
        if len(self._right) > _CAPACITY:
            self._right.popitem(last=False)
        await _note_use(stored)
        return owner

    def _cached(self, digest: str) -> Owner | None:
        verified = self._verified.get(digest)
        if verified is None or verified.until <= time.monotonic():
            return None
        return verified.owner


def _scope(stored: ApiKey) -> KeyScope:
    return KeyScope(
        stored.name,
        frozenset(map(served_model, stored.allowed_models)),  # as requests' are read, by aliases
        frozenset(stored.allowed_endpoints),
    )


async def _stored_key(key: str) -> ApiKey | None:
    """The row of the key's public part, whatever its secret."""
    prefix, _, rest = key.partition("_")
    name, _, _ = rest.partition("_")
    if prefix != keys.PREFIX or not name.isalnum():
        return None
    rows = keys.valid(timezone.now()).select_related("user").filter(name=name[:16])
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
