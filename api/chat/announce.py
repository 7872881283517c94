"""Telling the pages of a user that an answer has ended."""

import structlog
from django.db import DatabaseError

from api.answers.record import StoredAnswer
from api.chat.models import Conversation, Message
from api.events.hub import Hub

log = structlog.get_logger("canopy.api")


async def answer_ended(hub: Hub, answer: StoredAnswer) -> None:
    """Publishes the end of a conversation's answer; other stored answers have no pages."""
    if not isinstance(answer, Message):
        return
    rows = Conversation.objects.filter(pk=answer.conversation_id)
    try:
        user = await rows.values_list("user", flat=True).afirst()
    except DatabaseError as error:  # fate: readers of the answer see its end without this
        log.warning("the end of an answer is not announced", reason=str(error))
        return
    if user is not None:
        hub.publish(user, answer.conversation_id, "updated", answer.pk)
