"""Shared links: made and revoked by their owner, read by everybody who has one."""

from datetime import datetime
from typing import Any

from django.http import HttpRequest, HttpResponse
from ninja import Router, Schema, Status
from pydantic import Field

from api.accounts.auth import Anyone, AuthRequest, Member
from api.chat.models import Role, Share
from api.chat.written import AttachedText
from api.http.documentation import error_statuses
from api.http.secret_headers import SECRET_HEADERS
from api.sharing import shares

router = Router(tags=["sharing"], auth=Member())


class SharedLink(Schema):
    """A share of its owner. `title`: of its conversation now."""

    id: int
    conversation: int
    title: str
    created: datetime


class NewLink(SharedLink):
    """`path`: the link without the host; it is told this once, as only its digest is stored."""

    path: str


class SharedLinks(Schema):
    """All shares of a user."""

    shares: list[SharedLink]


class SharedMessage(Schema):
    """One message. `model`: who answered; empty for questions."""

    role: Role
    content: str
    model: str
    attachments: list[AttachedText] = Field(default_factory=list)


class SharedConversation(Schema):
    """The branch as it was at `created`."""

    title: str
    created: datetime
    messages: list[SharedMessage]


@router.post(
    "/conversations/{row:number}/shares",
    response={201: NewLink},
    openapi_extra=error_statuses(409),
)
async def create(request: AuthRequest, number: int) -> Status[Any]:
    """A link to the branch that is shown, as it is now."""
    share, token = await shares.create(request.auth, number)
    return Status(201, NewLink(**_fields(share), path=f"/s/{token}"))


@router.get("/shares", response=SharedLinks)
async def read_all(request: AuthRequest) -> SharedLinks:
    """My shared links."""
    own = await shares.shares(request.auth)
    return SharedLinks(shares=[SharedLink(**_fields(share)) for share in own])


@router.delete("/shares/{row:number}", response={204: None})
async def revoke(request: AuthRequest, number: int) -> Status[Any]:
    """Ends a link."""
    await shares.revoke(request.auth, number)
    return Status(204, None)


@router.get("/shared/{token}", response=SharedConversation, auth=Anyone())
async def read(request: HttpRequest, response: HttpResponse, token: str) -> dict[str, Any]:
    """What is behind a link, for everybody who has it."""
    for name, value in SECRET_HEADERS.items():
        response.headers[name] = value
    return await shares.content(token)


def _fields(share: Share) -> dict[str, Any]:
    return {
        "id": share.pk,
        "conversation": share.conversation_id,
        "title": share.conversation.title,
        "created": share.created,
    }
