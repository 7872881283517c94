"""Making, reading and revoking shares. A link's token is stored as its digest only."""

import secrets
from typing import Any

import msgspec
from asgiref.sync import sync_to_async
from django.db import transaction

from api.accounts import secret
from api.accounts.models import User
from api.chat import store
from api.chat.models import Conversation, Message, Share
from api.errors import ApiError

MOST_SHARES = 500  # of one user
TOKEN_BYTES = 16
LONGEST_TOKEN = 64  # characters of what is looked up

_NOT_THERE = "this link is wrong, or it was revoked"


async def create(user: User, number: int) -> tuple[Share, str]:
    """Shares the branch that is shown now; returns the share and its link's token.

    Raises ApiError 404, and 409 for a conversation without messages or beyond MOST_SHARES.
    """
    conversation = await store.conversation(user, number)
    branch = await store.branch(conversation)
    if not branch:
        message = "there is nothing to share in this conversation yet"
        raise ApiError(409, message, code="nothing_to_share")
    token = secrets.token_urlsafe(TOKEN_BYTES)
    content = msgspec.json.encode(_snapshot(conversation, branch)).decode()
    share = await _store(user, conversation, secret.digest(token), content)
    return share, token


def _snapshot(conversation: Conversation, branch: list[Message]) -> dict[str, Any]:
    messages = [
        {
            "role": message.role,
            "content": message.content,
            "model": message.model,
            "attachments": message.attachments or [],
        }
        for message in branch
        if message.content or message.attachments
    ]
    return {"title": conversation.title, "messages": messages}


@sync_to_async
@transaction.atomic
def _store(user: User, conversation: Conversation, digest: str, content: str) -> Share:
    if Share.objects.filter(conversation__user=user).count() >= MOST_SHARES:
        message = f"you have {MOST_SHARES} shared links; revoke some of them first"
        raise ApiError(409, message, code="too_many_shares", params={"most": MOST_SHARES})
    return Share.objects.create(conversation=conversation, digest=digest, content=content)


@sync_to_async
def shares(user: User) -> list[Share]:
    """The user's shares, newest first, without their contents."""
    rows = Share.objects.filter(conversation__user=user, conversation__deleted_at__isnull=True)
    return list(rows.select_related("conversation").defer("content")[:MOST_SHARES])


@sync_to_async
def revoke(user: User, number: int) -> None:
    """The link stops working. Raises ApiError 404."""
    deleted, _ = Share.objects.filter(conversation__user=user, pk=number).delete()
    if not deleted:
        raise ApiError(404, "there is no such shared link", code="not_found")


async def content(token: str) -> dict[str, Any]:
    """What is shared under that token. Raises ApiError 404."""
    digest = secret.digest(token[:LONGEST_TOKEN])
    rows = Share.objects.filter(
        digest=digest, conversation__deleted_at__isnull=True, conversation__user__is_active=True
    )
    share = await rows.afirst()
    if share is None or not secret.same(share.digest, digest):
        raise ApiError(404, _NOT_THERE, code="not_found")
    snapshot: dict[str, Any] = msgspec.json.decode(share.content)
    return {**snapshot, "created": share.created}
