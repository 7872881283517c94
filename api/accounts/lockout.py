"""Wrong passwords lock a login for a while, by account and address: at /api/login and at /admin/.

django-axes counts them in the database, for all API processes; the bounds are below. Who guesses
locks out the account for their own address first. So that guesses from many addresses lock nobody
out of an own account, the bound of an account does not hold where it was logged in to before.
"""

import asyncio
import math
import unicodedata
from collections.abc import Awaitable, Callable, Sequence
from datetime import datetime, timedelta
from typing import Any

from asgiref.sync import iscoroutinefunction, markcoroutinefunction, sync_to_async
from axes.handlers.database import AxesDatabaseHandler
from axes.models import AccessAttempt, AccessLog
from django.conf import settings
from django.db.models import Q
from django.http import HttpRequest, HttpResponse
from django.utils import timezone
from django.utils.html import format_html

from api import errors
from api.errors import ApiError
from api.requests.position import rounded
from api.server.limits import is_within, peer_of

WINDOW = timedelta(minutes=15)  # in which wrong passwords count, and then a lock's longest time
MOST_OF_PAIR = 5  # wrong passwords for one account from one address
MOST_OF_ADDRESS = 30  # from one address, for any account
MOST_OF_ACCOUNT = 50  # for one account, from any address
KNOWN_ADDRESS_DAYS = 90  # after its last login an address counts as the account's own
FORGET_EVERY = 600.0  # seconds
_MOST_ROWS = 1_000

Failures = Sequence[tuple[datetime, int]]  # when the latest of so many was

_PAGE = (
    "<!doctype html><meta charset=utf-8><title>Canopy</title>"
    "<h1>Too many wrong passwords</h1><p>{}</p>"
)


def locked_until(failures: Failures, most: int) -> datetime | None:
    """When fewer than `most` failures will be left in the window; None if that is so already."""
    count = 0
    for at, number in sorted(failures, reverse=True):
        count += number
        if count >= most:
            return at + WINDOW
    return None


def counted_name(request: Any, credentials: dict[str, Any] | None) -> str:
    """The name by which wrong passwords count: a directory ignores case, so guesses cannot vary."""
    name = str((credentials or {}).get("username") or "")
    return unicodedata.normalize("NFKC", name).casefold()[:255]


def client_address(request: HttpRequest) -> str | None:
    """For django-axes: an IPv6 client is its /64 network, as for other limits."""
    return address_of(request) or None


def address_of(request: HttpRequest) -> str:
    """The address that is limited; server/edge.py has put the client's in a proxy's place."""
    return peer_of(str(request.META.get("REMOTE_ADDR", ""))).partition("/")[0]


class Handler(AxesDatabaseHandler):
    """Counts in the database; decides by the bounds above."""

    def get_failures(self, request: Any, credentials: dict[str, Any] | None = None) -> int:
        """1 if the login is locked, which is AXES_FAILURE_LIMIT; notes until when."""
        name = counted_name(request, credentials)
        request.locked_until = _lock(name, request.axes_ip_address, request.axes_attempt_time)
        return int(request.locked_until is not None)

    def reset_user_attempts(self, request: Any, credentials: dict[str, Any] | None = None) -> int:
        """After a login: this account's from this address alone, or an own account would help."""
        name = counted_name(request, credentials)
        rows = AccessAttempt.objects.filter(username=name, ip_address=request.axes_ip_address)
        deleted, _ = rows.delete()
        return int(deleted)


def _lock(name: str | None, address: str | None, now: datetime) -> datetime | None:
    same_account, same_address = Q(username=name), Q(ip_address=address)
    rows = list(
        AccessAttempt.objects.filter(same_account | same_address, attempt_time__gt=now - WINDOW)
        .order_by("-attempt_time")
        .values_list("username", "ip_address", "attempt_time", "failures_since_start")[:_MOST_ROWS]
    )
    pair = [(at, count) for who, where, at, count in rows if (who, where) == (name, address)]
    ends = [locked_until(pair, MOST_OF_PAIR)]
    if not is_within(address or "", settings.ENV.proxies):  # one that many clients share
        there = [(at, count) for _, where, at, count in rows if where == address]
        ends.append(locked_until(there, MOST_OF_ADDRESS))
    of_account = [(at, count) for who, _, at, count in rows if who == name]
    end = locked_until(of_account, MOST_OF_ACCOUNT)
    if end is not None and not _is_known(name, address, now):
        ends.append(end)
    return max((end for end in ends if end is not None), default=None)


def _is_known(name: str | None, address: str | None, now: datetime) -> bool:
    """Whether the account was logged in to from there lately."""
    since = now - timedelta(days=KNOWN_ADDRESS_DAYS)
    logins = AccessLog.objects.filter(
        username__iexact=name, ip_address=address, attempt_time__gt=since
    )
    return logins.exists()


def unlock(name: str) -> int:
    """Forgets the wrong passwords for that account; returns how many rows there were."""
    deleted, _ = AccessAttempt.objects.filter(
        username=counted_name(None, {"username": name})
    ).delete()
    return int(deleted)


def forget_old_logins(now: datetime) -> None:
    """Removes what no bound needs any more."""
    AccessLog.objects.filter(attempt_time__lt=now - timedelta(days=KNOWN_ADDRESS_DAYS)).delete()
    AccessAttempt.objects.filter(attempt_time__lt=now - WINDOW).delete()


async def forget_repeatedly() -> None:
    """Each wrong password leaves a row. Never ends."""
    while True:
        await asyncio.sleep(FORGET_EVERY)
        await sync_to_async(forget_old_logins)(timezone.now())


class Middleware:
    """Answers 429 where django-axes has refused a password, or has locked the login after one."""

    sync_capable = False
    async_capable = True

    def __init__(self, get_response: Callable[[HttpRequest], Awaitable[HttpResponse]]) -> None:
        self.get_response = get_response
        if iscoroutinefunction(get_response):
            markcoroutinefunction(self)

    async def __call__(self, request: Any) -> HttpResponse:
        response = await self.get_response(request)
        if not getattr(request, "axes_locked_out", False):
            return response
        return _refused(request, request.locked_until - request.axes_attempt_time)


def _refused(request: HttpRequest, left: timedelta) -> HttpResponse:
    error = refusal(left.total_seconds())
    if not request.path_info.startswith("/admin/"):
        return errors.response(request.path_info, error)
    page = format_html(_PAGE, error.message)
    return HttpResponse(page, status=error.status, headers=dict(error.headers))


def refusal(left: float) -> ApiError:
    """429: no password is looked at for so many seconds, the right one neither."""
    seconds = max(1, math.ceil(left))
    return ApiError(
        429,
        f"too many wrong passwords: no login for {rounded(seconds)}, not even with the right one",
        code="login_locked",
        params={"seconds": seconds},
        headers={"Retry-After": str(seconds)},
    )
