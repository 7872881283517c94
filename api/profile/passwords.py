"""Setting and checking passwords. Hashing blocks for a third of a second: each has a thread."""

from collections.abc import Callable
from typing import TypeVar

from asgiref.sync import sync_to_async
from django.contrib.auth.password_validation import validate_password
from django.core.exceptions import ValidationError
from django.db import IntegrityError, connections, transaction

from api.accounts.auth import AuthRequest
from api.accounts.models import User
from api.context import app
from api.errors import ApiError

Result = TypeVar("Result")
_PASSWORD_CODES = (
    "password_too_short",
    "password_too_similar",
    "password_too_common",
    "password_entirely_numeric",
)  # Django's, of its validators


async def choose_first(user: User, name: str, password: str) -> User:
    """Gives the account its name and its first password.

    Raises ApiError 400 for a name or password that is not allowed, 409 if it has a password.
    """
    return await _in_thread(lambda: _choose_first(user.pk, name, password))


async def change(user: User, new: str) -> User:
    """Replaces the password. Raises ApiError 400 if `new` is not allowed."""
    return await _in_thread(lambda: _change(user.pk, new))


async def confirm(request: AuthRequest, password: str, field: str) -> None:
    """Raises ApiError 400 if this is not the user's password. Wrong ones count as at a login."""
    name = request.auth.get_username()
    if await app().password_turns.check(request, name, password) is None:
        raise ApiError(400, "this is not your password", field=field, code="wrong_password")


async def _in_thread(work: Callable[[], Result]) -> Result:
    def with_own_connection() -> Result:
        try:
            return work()
        finally:
            connections.close_all()

    return await sync_to_async(with_own_connection, thread_sensitive=False)()


def _choose_first(number: int, name: str, password: str) -> User:
    try:
        with transaction.atomic():
            user = User.objects.select_for_update().get(pk=number)
            if user.identities.exists():
                message = "somebody else checks who you are: this account has no password here"
                raise ApiError(409, message, code="password_elsewhere")
            if user.has_usable_password():
                message = "this account has a password already; change it in settings"
                raise ApiError(409, message, code="password_exists")
            user.username = user.normalize_username(name)
            _check_name(user)
            _set(user, password, "password")
            user.save(update_fields=["username", "password"])
    except IntegrityError as error:
        message = "somebody else has this name; choose another"
        raise ApiError(400, message, field="name", code="name_taken") from error
    return user


def _change(number: int, new: str) -> User:
    with transaction.atomic():
        user = User.objects.select_for_update().get(pk=number)
        _set(user, new, "new")
        user.save(update_fields=["password"])
    return user


def _set(user: User, password: str, field: str) -> None:
    try:
        validate_password(password, user)
    except ValidationError as error:
        raise _refused(error, field, "password_refused") from error
    user.set_password(password)


def _check_name(user: User) -> None:
    try:
        user.clean_fields(exclude=["password"])
    except ValidationError as error:
        raise _refused(error, "name", "name_refused") from error


def _refused(error: ValidationError, field: str, fallback: str) -> ApiError:
    """400 for what a validator of Django's refuses, with its code if that is a password's."""
    code = fallback
    params: dict[str, str | int] = {}
    for reason in getattr(error, "error_list", []):
        if reason.code in _PASSWORD_CODES:
            code = reason.code
            params["bound"] = (reason.params or {}).get("min_length", 0)
            break
    return ApiError(400, " ".join(error.messages), field=field, code=code, params=params)
