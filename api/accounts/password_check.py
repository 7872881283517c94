"""Checking a password: one at a time for each account and address, counted by lockout.py."""

from asyncio import Lock
from collections import defaultdict
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field

from asgiref.sync import sync_to_async
from django.contrib.auth import authenticate
from django.db import connections
from django.http import HttpRequest

from api.accounts.lockout import address_of
from api.accounts.models import User
from api.errors import ApiError

MOST_WAITING = 4  # guesses of one sender for one account
RETRY_AFTER = 2  # seconds

Guesser = tuple[str, str]  # account, address


@dataclass(slots=True)
class _Turn:
    lock: Lock = field(default_factory=Lock)
    waiting: int = 0


class PasswordTurns:
    """Lets one guess after the other through: several at once would pass the bound together."""

    def __init__(self) -> None:
        self._turns: defaultdict[Guesser, _Turn] = defaultdict(_Turn)

    @asynccontextmanager
    async def turn(self, guesser: Guesser) -> AsyncIterator[None]:
        """Waits for the guesser's turn. Raises ApiError 429 if several wait already."""
        turn = self._turns[guesser]
        if turn.waiting >= MOST_WAITING:
            raise _too_many()
        turn.waiting += 1
        try:
            async with turn.lock:
                yield
        finally:
            turn.waiting -= 1
            if not turn.waiting:
                del self._turns[guesser]

    async def check(self, request: HttpRequest, name: str, password: str) -> User | None:
        """The active user with this password; None if it is wrong, or the login is locked.

        A locked one is answered by lockout.py, whatever the endpoint says.
        """
        async with self.turn((name, address_of(request))):
            return await sync_to_async(_check, thread_sensitive=False)(request, name, password)


def _check(request: HttpRequest, name: str, password: str) -> User | None:
    """Blocks for a third of a second, to hash: needs its own thread, and closes its connection."""
    try:
        return authenticate(request, username=name, password=password)
    finally:
        connections.close_all()


def _too_many() -> ApiError:
    return ApiError(
        429,
        "several passwords for this account are being checked: wait for the answers",
        code="login_busy",
        headers={"Retry-After": str(RETRY_AFTER)},
    )
