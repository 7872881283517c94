"""Who is to hear of which change: the readers of this process, and the other API processes.

A change names rows and carries no content. Each reader loads what it shows, so a change costs
nothing where nobody reads.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Literal

from api.errors import ApiError
from api.events.inbox import Inbox
from broker.conversation_events import ConversationChange, ConversationEvents

READERS_PER_USER = 32  # open tabs and devices of one user, in this process

Change = Literal["created", "updated", "deleted"]


class Hub:
    """Delivers changes. `channel`: the way to the other processes."""

    def __init__(self, channel: ConversationEvents) -> None:
        self._channel = channel
        self._inboxes: dict[int, set[Inbox]] = {}  # by user
        channel.listen(self._on_remote)

    def check_room(self, user: int) -> None:
        """Raises ApiError 429 if so many readers of that user are connected."""
        count = len(self._inboxes.get(user, ()))
        if count >= READERS_PER_USER:
            message = f"{count} pages of this account are open; close some of them"
            raise ApiError(429, message, code="too_many_pages", params={"count": count})

    @contextmanager
    def subscribe(self, user: int) -> Iterator[Inbox]:
        """An inbox for the changes of this user."""
        inboxes = self._inboxes.setdefault(user, set())
        inbox = Inbox()
        inboxes.add(inbox)
        try:
            yield inbox
        finally:
            inboxes.discard(inbox)
            if not inboxes:
                self._inboxes.pop(user, None)

    def publish(
        self, user: int, conversation: int, change: Change = "updated", message: int | None = None
    ) -> None:
        """Tells every reader of that user: here at once, elsewhere through the broker.

        `message`: a new or changed message of the conversation. Call it after the transaction.
        """
        self._publish(
            ConversationChange(
                process=self._channel.process,
                user=user,
                change=change,
                conversation=conversation,
                message=message,
            )
        )

    def publish_many(self, user: int) -> None:
        """So many conversations of that user changed that readers load the whole list again."""
        self._publish(ConversationChange(process=self._channel.process, user=user))

    def _publish(self, change: ConversationChange) -> None:
        self._deliver(change)
        self._channel.publish(change)

    def _on_remote(self, change: ConversationChange | None) -> None:
        """A change elsewhere; None: some may have been missed while the broker was away."""
        if change is not None:
            self._deliver(change)
            return
        for inboxes in self._inboxes.values():
            for inbox in inboxes:
                inbox.lose()

    def _deliver(self, change: ConversationChange) -> None:
        for inbox in self._inboxes.get(change.user, ()):
            inbox.put(change)
