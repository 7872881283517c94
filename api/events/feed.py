"""One tab's events: the list of conversations, and all that happens in the open one.

    ready    {conversation, version}    always first; not the version that the page has: load again
    list     {change, conversation}     a conversation was created, updated or deleted
    message  {conversation, message, seen_from?}   a new or changed message of the open one
    delta    {message, offset, text}    text of a running answer, from this place on
    waiting  {message, reason, code, slots, position, seconds}
    start    {message, node, trail}     a node answers now
    done, failed  {message, seen_from}  a running answer has ended
    resync   {}                         something was missed: load the list and the conversation

Offsets count UTF-16 units, as JavaScript does.
"""

import asyncio
from collections.abc import AsyncGenerator
from typing import Any

from api.accounts.models import User
from api.chat import conversation_list, schemas, store
from api.chat.events import start_fields, waiting_fields
from api.chat.models import Conversation, Message, Role, Status
from api.context import app
from api.errors import ApiError
from api.events.followers import Followers
from api.events.inbox import Inbox, Part
from api.http import sse
from broker.conversation_events import ConversationChange
from broker.wire import Delta, Start, Waiting

KEEPALIVE = 10.0  # seconds of silence after which a comment is sent
LIFETIME = 900.0  # seconds; then the page connects again, and its session is checked again


async def events(user: User, conversation: Conversation | None) -> AsyncGenerator[bytes]:
    """The events of one tab, for LIFETIME."""
    with app().hub.subscribe(user.pk) as inbox:
        async with Followers(inbox) as followers:
            feed = _Feed(user, conversation, followers)
            yield await feed.begin()
            end = asyncio.get_running_loop().time() + LIFETIME
            async for item in sse.ticking(inbox, KEEPALIVE):
                if item is None:
                    yield sse.comment("ping")
                elif isinstance(item, tuple):
                    for event in await feed.on_part(item):
                        yield event
                else:
                    for event in await feed.on_changes(inbox):
                        yield event
                if asyncio.get_running_loop().time() >= end:
                    return


class _Feed:
    """What is known of one reader, and the events that follow for it."""

    def __init__(self, user: User, conversation: Conversation | None, followers: Followers) -> None:
        self._user = user
        self._conversation = conversation
        self._followers = followers
        self._offsets: dict[int, int] = {}  # of the running answers, in UTF-16 units

    async def begin(self) -> bytes:
        """Begins to follow the running answers; the first event."""
        if self._conversation is None:
            return sse.event("ready", {"conversation": None, "version": ""})
        for answer in await store.running(self._conversation):
            self._follow(answer)
        version = await store.version(self._conversation)
        fields = {"conversation": self._conversation.pk, "version": version}
        return sse.event("ready", fields)

    async def on_changes(self, inbox: Inbox) -> list[bytes]:
        """The events for what has arrived there."""
        changes, lost = inbox.take()
        events: list[bytes] = []
        if lost:
            events.append(sse.event("resync", {}))
        for change in changes:
            events += await self._change_events(change)
        return events

    async def _change_events(self, change: ConversationChange) -> list[bytes]:
        events = [await self._list_event(change)]
        if change.message is not None and self._is_open(change.conversation):
            events += await self._message_events(change.message)
        return events

    async def on_part(self, part: Part) -> list[bytes]:
        """The events for a part of a running answer."""
        message, frame = part
        if isinstance(frame, Delta):
            return [self._delta(message, frame.text)]
        if isinstance(frame, Start):
            return [sse.event("start", {"message": message, **start_fields(frame)})]
        if isinstance(frame, Waiting):
            return [sse.event("waiting", {"message": message, **waiting_fields(frame)})]
        return await self._message_events(message)

    def _is_open(self, conversation: int | None) -> bool:
        return self._conversation is not None and self._conversation.pk == conversation

    def _follow(self, answer: Message) -> None:
        self._offsets[answer.pk] = 0
        self._followers.follow(answer)

    def _delta(self, message: int, text: str) -> bytes:
        offset = self._offsets.get(message, 0)
        self._offsets[message] = offset + len(text.encode("utf-16-le")) // 2
        return sse.event("delta", {"message": message, "offset": offset, "text": text})

    async def _list_event(self, change: ConversationChange) -> bytes:
        if change.conversation is None:
            return sse.event("list", {"change": "reset", "conversation": None})
        if change.change != "deleted":
            row = await conversation_list.summary(self._user, change.conversation)
            if row is not None:
                summary = schemas.Summary.from_orm(row).model_dump(mode="json")
                return sse.event("list", {"change": change.change, "conversation": summary})
        deleted = {"change": "deleted", "conversation": {"id": change.conversation}}
        return sse.event("list", deleted)

    async def _message_events(self, number: int) -> list[bytes]:
        """A message that was added, or changed, or whose answer ended."""
        if self._conversation is None:
            return []
        try:
            message = await store.message(self._user, self._conversation.pk, number)
        except ApiError:  # it was removed since; that change follows
            return []
        shown = schemas.Message.of(message).model_dump(mode="json")
        if message.status == Status.STREAMING:
            if number in self._offsets:
                return []
            self._follow(message)
        elif self._offsets.pop(number, None) is not None:
            await self._followers.stop(number)
            return [await self._end(message, shown)]
        fields = {"conversation": self._conversation.pk, "message": shown}
        if message.role == Role.ASSISTANT and message.status != Status.STREAMING:
            # It may have ended before it could be followed.
            fields["seen_from"] = await store.seen_from(message, message.omitted_messages)
        return [sse.event("message", fields)]

    async def _end(self, message: Message, shown: dict[str, Any]) -> bytes:
        name = "failed" if message.status == Status.FAILED else "done"
        seen_from = await store.seen_from(message, message.omitted_messages)
        return sse.event(name, {"message": shown, "seen_from": seen_from})
