"""Conversations as text, one at a time, so that any number of them takes little memory."""

from collections.abc import AsyncGenerator, Iterable
from datetime import datetime
from typing import Any

import msgspec

from api.accounts.models import User
from api.chat import store
from api.chat.models import Conversation, Message, Role

FORMAT = "canopy"
VERSION = 1

_NAMES = {Role.USER: "You", Role.ASSISTANT: "Assistant"}


async def all_as_json(user: User) -> AsyncGenerator[bytes]:
    """All of the user's conversations as one JSON document."""
    yield b'{"format":"%b","version":%d,"conversations":[' % (FORMAT.encode(), VERSION)
    separator = b"\n"
    rows = Conversation.objects.filter(user=user, temporary=False).order_by("pk")
    async for number in rows.values_list("pk", flat=True).aiterator():
        conversation = await rows.filter(pk=number).afirst()
        if conversation is not None:  # not deleted since
            yield separator + msgspec.json.encode(await as_document(conversation))
            separator = b",\n"
    yield b"\n]}\n"


async def as_document(conversation: Conversation) -> dict[str, Any]:
    """A conversation with all branches, as `import` reads it."""
    transcript = await store.transcript(conversation)
    return {
        "title": conversation.title,
        "model": conversation.model,
        "created": _time(conversation.created),
        "updated": _time(conversation.updated),
        "pinned": conversation.pinned,
        "archived": conversation.archived,
        "folder": conversation.folder,
        "head": transcript.head,
        "messages": [_message(message) for message in transcript.messages],
    }


async def as_json(conversation: Conversation) -> bytes:
    """The same document as for all conversations, with one of them."""
    document = {
        "format": FORMAT,
        "version": VERSION,
        "conversations": [await as_document(conversation)],
    }
    return msgspec.json.format(msgspec.json.encode(document), indent=1) + b"\n"


def as_markdown(conversation: Conversation, branch: Iterable[Message]) -> str:
    """The branch for people to read."""
    title = " ".join(conversation.title.split())
    parts = [f"# {title}\n"]
    for message in branch:
        name = _NAMES[Role(message.role)]
        if message.model:
            name = f"{name} ({message.model})"
        parts.append(f"\n## {name}\n\n{message.prompt.strip()}\n")
    return "".join(parts)


def _message(message: Message) -> dict[str, Any]:
    document = {
        "id": message.pk,
        "parent": message.parent_id,
        "role": message.role,
        "content": message.content,
        "model": message.model,
        "created": _time(message.created),
    }
    if message.attachments:
        document["attachments"] = message.attachments
    return document


def _time(moment: datetime) -> str:
    return moment.isoformat().replace("+00:00", "Z")
