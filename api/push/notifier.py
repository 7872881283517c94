"""Tells the user's browsers when a long answer is ready.

A browser that shows the pages at that moment stays silent (frontend/src/sw/worker.ts).
"""

import asyncio
from collections.abc import Sequence

import httpx
import structlog
from django.db import DatabaseError
from django.utils import timezone

from api.answers.record import Status, StoredAnswer
from api.chat.models import Conversation, Message
from api.push import services, store
from api.push.message import Sender, Target
from api.push.models import PushSubscription

log = structlog.get_logger("canopy.api")

LONG_SECONDS = 10.0  # nobody leaves the page for less
MAX_WAITING = 100  # answers; more are not told of
_TIMEOUT = 10.0  # seconds of one request
_BODY_CHARACTERS = 140
_GONE = {404, 410}


class Notifier:
    """Sends the notifications, one after the other, beside everything else.

    `more_services`: origins that may be sent to beside the browser vendors'.
    """

    def __init__(self, sender: Sender, more_services: Sequence[str]) -> None:
        self._sender = sender
        self._more_services = more_services
        self._answers: asyncio.Queue[Message] = asyncio.Queue(MAX_WAITING)

    @property
    def public_key(self) -> str:
        """The key that browsers subscribe with."""
        return self._sender.public_key

    def may_send_to(self, endpoint: str) -> bool:
        """Whether that is the address of a push service."""
        return services.is_allowed(endpoint, self._more_services)

    def answer_ended(self, answer: StoredAnswer) -> None:
        """Tells of this answer if it is one of the chat and took long."""
        if not isinstance(answer, Message) or answer.status != Status.DONE:
            return
        if (timezone.now() - answer.created).total_seconds() < LONG_SECONDS:
            return
        try:
            self._answers.put_nowait(answer)
        except asyncio.QueueFull:
            log.warning("too many notifications at once: one is dropped", message=answer.pk)

    async def run(self) -> None:
        """Never ends."""
        async with httpx.AsyncClient(timeout=_TIMEOUT, follow_redirects=False) as client:
            while True:
                answer = await self._answers.get()
                try:
                    await self._tell(client, answer)
                except DatabaseError as error:  # fate: this answer is not told of
                    log.warning("a notification was not sent", reason=str(error))

    async def _tell(self, client: httpx.AsyncClient, answer: Message) -> None:
        conversation = await Conversation.objects.filter(pk=answer.conversation_id).afirst()
        if conversation is None:
            return
        content = {
            "title": conversation.title,
            "body": " ".join(answer.content.split())[:_BODY_CHARACTERS],
            "path": f"/c/{conversation.pk}",
        }
        for subscription in await store.of_user(conversation.user_id):
            await self._send(client, subscription, content)

    async def _send(
        self, client: httpx.AsyncClient, subscription: PushSubscription, content: dict[str, str]
    ) -> None:
        target = Target(subscription.endpoint, subscription.p256dh, subscription.auth)
        try:
            body, headers = self._sender.request(target, content)
            response = await client.post(target.endpoint, content=body, headers=headers)
        except (httpx.HTTPError, ValueError) as error:
            log.warning("a notification was not sent", reason=f"{type(error).__name__}: {error}")
            return
        if response.status_code in _GONE:
            await store.remove(subscription)
        elif response.is_error:
            log.warning("a push service refused a notification", status=response.status_code)
