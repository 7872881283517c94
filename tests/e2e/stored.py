"""Conversations that are written into the database, for tests of pages with much in them."""

import json
from collections.abc import Sequence

from tests.instance import Instance

Turns = Sequence[tuple[str, str]]  # role and text of each message

_STORE = """
import json, sys
import django
django.setup()
from api.accounts.models import User
from api.chat.models import Conversation, Message
user = User.objects.get(username=sys.argv[1])
ids = []
for title, model, turns in json.load(sys.stdin):
    conversation = Conversation.objects.create(user=user, title=title, model=model)
    Message.objects.bulk_create(
        Message(conversation=conversation, role=role, content=content, status="done")
        for role, content in turns
    )
    ids.append(str(conversation.pk))
print(json.dumps(ids))
"""


def store_conversations(
    instance: Instance, user: str, conversations: Sequence[tuple[str, Turns]], model: str = "echo"
) -> list[str]:
    """Stores conversations, each a title and its messages; their ids."""
    rows = [(title, model, list(turns)) for title, turns in conversations]
    return json.loads(instance.python(_STORE, user, text=json.dumps(rows)))


def dialogue(*answers: str) -> Turns:
    """A question before each answer."""
    turns: list[tuple[str, str]] = []
    for number, answer in enumerate(answers, start=1):
        turns += [("user", f"Question number {number}?"), ("assistant", answer)]
    return turns
