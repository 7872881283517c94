"""API keys: `canopy_<name>_<secret>`, of which the database has the digest; key_cache.py checks."""

import secrets
from collections.abc import Sequence
from datetime import datetime

from django.db.models import Q, QuerySet

from api.accounts import secret
from api.accounts.models import ApiKey, User

PREFIX = "canopy"


def create(
    user: User,
    label: str = "",
    *,
    expires: datetime | None = None,
    models: Sequence[str] = (),
    endpoints: Sequence[str] = (),
) -> str:
    """A new key. Only its digest is stored, so it cannot be shown again."""
    name = secrets.token_hex(4)
    key = f"{PREFIX}_{name}_{secret.make()}"
    ApiKey.objects.create(
        user=user,
        name=name,
        label=label,
        digest=secret.digest(key),
        expires=expires,
        allowed_models=sorted(set(models)),
        allowed_endpoints=sorted(set(endpoints)),
    )
    return key


def valid(now: datetime) -> "QuerySet[ApiKey]":
    """The keys that are neither revoked nor expired."""
    return ApiKey.objects.filter(Q(expires=None) | Q(expires__gt=now), revoked=False)
