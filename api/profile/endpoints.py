"""A person's own account. Only sessions may use it, no API keys."""

from typing import Annotated, Any

from django.contrib.auth import alogout, aupdate_session_auth_hash
from ninja import Router, Status
from pydantic import Field

from api.accounts import logins
from api.accounts.auth import AuthRequest, Session
from api.accounts.confirmation import confirmation_of
from api.accounts.endpoints import Person, person
from api.accounts.key_cache import SETTING
from api.accounts.models import User
from api.context import app
from api.errors import ApiError
from api.http.documentation import error_statuses
from api.profile import passwords, schemas, store, usage

router = Router(tags=["account"], auth=Session())

_CONFLICT = error_statuses(409)
Days = Annotated[int, Field(ge=1, le=366)]


@router.post("/start", response=Person, openapi_extra=_CONFLICT)
async def start(request: AuthRequest, body: schemas.FirstPassword) -> Person:
    """Gives an account without a password its name and password, once."""
    user = await passwords.choose_first(request.auth, body.name, body.password)
    await _end_other_sessions(request, user)
    return await person(user)


@router.post("/password", response={204: None})
async def change_password(request: AuthRequest, body: schemas.NewPassword) -> Status[Any]:
    """Replaces the password; all other sessions end, keys only with `revoke_keys`."""
    await passwords.confirm(request, body.current, "current")
    user = await passwords.change(request.auth, body.new)
    if body.revoke_keys:
        await store.revoke_all(user)
        _forget_keys()
    await _end_other_sessions(request, user)
    return Status(204, None)


@router.post("/delete", response={204: None}, openapi_extra=_CONFLICT)
async def delete(request: AuthRequest, body: schemas.Confirmation) -> Status[Any]:
    """Removes the account with its conversations, keys and sessions, for good.

    `confirmation` of `/api/me` says whether the password is asked for, or the account's name.
    """
    user = request.auth
    if await confirmation_of(user) == "password":
        await passwords.confirm(request, body.password, "password")
    elif body.name != user.get_username():
        raise ApiError(400, "this is not your name here", field="name", code="wrong_name")
    await store.delete_account(user)
    await alogout(request)
    _forget_keys()
    return Status(204, None)


@router.get("/keys", response=schemas.KeyList)
async def keys(request: AuthRequest) -> dict[str, Any]:
    """My API keys."""
    return {"keys": await store.list_keys(request.auth)}


@router.post("/keys", response={201: schemas.CreatedKey}, openapi_extra=_CONFLICT)
async def create_key(request: AuthRequest, body: schemas.NewKey) -> Status[Any]:
    """Makes an API key, which is shown in this answer and never again."""
    row, secret = await store.create_key(request.auth, body)
    shown = schemas.ListedKey.model_validate(row, from_attributes=True)
    return Status(201, schemas.CreatedKey(key=secret, **shown.model_dump()))


@router.delete("/keys/{row:number}", response={204: None})
async def revoke_key(request: AuthRequest, number: int) -> Status[Any]:
    """Makes a key invalid; what runs for it ends within a second."""
    if not await store.revoke_key(request.auth, number):
        raise ApiError(404, "there is no such key", code="not_found")
    _forget_keys()
    return Status(204, None)


@router.get("/sessions", response=schemas.Logins)
async def sessions(request: AuthRequest) -> dict[str, Any]:
    """The browsers in which I am logged in."""
    await logins.note(request, request.auth)
    current = request.session.session_key
    listed = []
    for row in await logins.of_user(request.auth):
        listed.append(
            schemas.Login(
                id=row.pk,
                browser=row.browser,
                created=row.created,
                last_used=row.last_used,
                current=row.session_key == current,
            )
        )
    return {"sessions": listed}


@router.delete("/sessions/{row:number}", response={204: None})
async def end_session(request: AuthRequest, number: int) -> Status[Any]:
    """Logs one browser out."""
    if not await logins.end(request.auth, number):
        raise ApiError(404, "there is no such session", code="not_found")
    return Status(204, None)


@router.post("/sessions/end-others", response={204: None})
async def end_other_sessions(request: AuthRequest) -> Status[Any]:
    """Logs all browsers out but this one."""
    await logins.end_others(request.auth, request.session.session_key)
    return Status(204, None)


@router.get("/usage", response=schemas.Usage)
async def read_usage(request: AuthRequest, days: Days = 30) -> dict[str, Any]:
    """What my stored answers took, by day and model, and all my requests, by key and model."""
    await app().usage.flush()
    return {
        "days": days,
        "use": await usage.by_day(request.auth, days),
        "keys": await usage.by_key(request.auth, days),
    }


def _forget_keys() -> None:
    """Has every API process ask the database about the next use of a key."""
    app().keys.clear()
    app().client.announcements.announce(SETTING)


async def _end_other_sessions(request: AuthRequest, user: User) -> None:
    """A new password makes all sessions invalid; this one goes on, under a new key."""
    request.user = user  # Django's own is lazy, and would block
    await aupdate_session_auth_hash(request, user)
    await logins.note(request, user)
    await logins.end_others(user, request.session.session_key)
