"""In which browsers a user is logged in, beside Django's own sessions, which do not say whose."""

from datetime import timedelta
from typing import Any, cast

import structlog
from asgiref.sync import sync_to_async
from django.conf import settings
from django.contrib.auth.models import AbstractBaseUser, AnonymousUser
from django.contrib.sessions.models import Session
from django.db import DatabaseError, transaction
from django.http import HttpRequest
from django.utils import timezone

from api.accounts.models import Login, User

log = structlog.get_logger("canopy.api")

SIGN_ON_MARK = "oidc"  # in sessions that began at a provider
SHOWN = 100  # logins of one user, the latest
_LAST_USED_EVERY = timedelta(minutes=1)


def limit_session(request: HttpRequest, user: User, **signal: object) -> None:
    """Whom somebody else knows must log in there again after a while: they may be gone there."""
    if user.identities.exists():
        request.session.set_expiry(settings.ENV.identities.session_hours * 3600)


async def note(request: HttpRequest, user: AbstractBaseUser | AnonymousUser) -> None:
    """Stores that the request's session was used, about once a minute.

    A full disk ends no session.
    """
    browser = request.headers.get("User-Agent", "")[:300]
    try:
        await _note(cast(User, user), request.session.session_key, browser)
    except DatabaseError as error:
        log.warning("a login's last use could not be stored", reason=str(error))


async def _note(user: User, session_key: str | None, browser: str) -> None:
    if session_key is None:
        return
    now = timezone.now()
    row = await Login.objects.filter(session_key=session_key).afirst()
    if row is None:
        fields = {"user": user, "browser": browser, "last_used": now}
        await Login.objects.aget_or_create(session_key=session_key, defaults=fields)
    elif row.user_id != user.pk or row.last_used < now - _LAST_USED_EVERY:
        changes: dict[str, Any] = {"user": user, "browser": browser, "last_used": now}
        await Login.objects.filter(pk=row.pk).aupdate(**changes)


@sync_to_async
@transaction.atomic
def of_user(user: User) -> list[Login]:
    """The user's browsers, latest first; sessions that are over are forgotten."""
    alive = Session.objects.filter(expire_date__gt=timezone.now()).values("session_key")
    Login.objects.filter(user=user).exclude(session_key__in=alive).delete()
    return list(Login.objects.filter(user=user)[:SHOWN])


@sync_to_async
@transaction.atomic
def end(user: User, number: int) -> bool:
    """Ends one of the user's sessions; False if there is none of that number."""
    row = Login.objects.filter(user=user, pk=number).first()
    if row is None:
        return False
    Session.objects.filter(session_key=row.session_key).delete()
    row.delete()
    return True


@sync_to_async
@transaction.atomic
def end_others(user: User, session_key: str | None) -> None:
    """Ends all of the user's sessions but this one."""
    others = Login.objects.filter(user=user).exclude(session_key=session_key or "")
    Session.objects.filter(session_key__in=others.values("session_key")).delete()
    others.delete()
