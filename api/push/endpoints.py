"""Subscribing a browser to notifications."""

from typing import Any

from ninja import Router, Schema, Status
from pydantic import Field

from api.accounts.auth import AuthRequest, Member
from api.context import app
from api.errors import ApiError
from api.http.documentation import error_statuses
from api.http.parsing import Body, StorableText
from api.push import message, store

router = Router(tags=["notifications"], auth=Member())

_SECRET_BYTES = 16  # RFC 8291


class Key(Schema):
    """The key to subscribe with; null where this service sends no notifications."""

    key: str | None


class Keys(Body):
    """The browser's keys in base64url, as `PushSubscription.toJSON()` names them."""

    p256dh: StorableText = Field(max_length=100)
    auth: StorableText = Field(max_length=40)


class Subscription(Body):
    """A browser's subscription, as `PushSubscription.toJSON()` has it."""

    endpoint: StorableText = Field(max_length=1000)
    keys: Keys


class Endpoint(Body):
    """A subscription's address."""

    endpoint: StorableText = Field(max_length=1000)


@router.get("", response=Key)
async def read(request: AuthRequest) -> Key:
    """The key to subscribe with."""
    notifier = app().notifier
    return Key(key=notifier.public_key if notifier else None)


@router.post("/subscriptions", response={204: None}, openapi_extra=error_statuses(404))
async def subscribe(request: AuthRequest, body: Subscription) -> Status[Any]:
    """Notifies this browser from now on."""
    notifier = app().notifier
    if notifier is None:
        text = "this service sends no notifications (CANOPY_PUSH_CONTACT)"
        raise ApiError(404, text, code="push_off")
    if not notifier.may_send_to(body.endpoint):
        text = "this is not the address of a known push service"
        raise ApiError(400, text, field="endpoint", code="push_service_unknown")
    if not message.is_public_key(body.keys.p256dh) or not _is_secret(body.keys.auth):
        raise ApiError(
            400, "these are not the keys of a browser", field="keys", code="invalid_value"
        )
    await store.subscribe(request.auth, body.endpoint, body.keys.p256dh, body.keys.auth)
    return Status(204, None)


@router.post("/subscriptions/remove", response={204: None})
async def unsubscribe(request: AuthRequest, body: Endpoint) -> Status[Any]:
    """Notifies this browser no more."""
    await store.unsubscribe(request.auth, body.endpoint)
    return Status(204, None)


def _is_secret(text: str) -> bool:
    try:
        return len(message.decode(text)) == _SECRET_BYTES
    except ValueError:
        return False
