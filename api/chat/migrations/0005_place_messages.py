# ruff: noqa: RUF012
"""Every conversation so far is one branch: each message follows the one before it."""

from typing import Any

from django.db import migrations
from django.db.models import OuterRef, Subquery


def place(apps: Any, _schema_editor: Any) -> None:
    """Sets parents, roots and heads. Apart from 0004: PostgreSQL refuses to alter a table whose
    rows were changed in the same transaction.
    """
    messages = apps.get_model("chat", "Message").objects
    same_conversation = messages.filter(conversation=OuterRef("conversation"))
    former = same_conversation.filter(pk__lt=OuterRef("pk")).order_by("-pk")
    unplaced = messages.filter(parent=None, is_root=False)
    unplaced.update(parent=Subquery(former.values("pk")[:1]))
    unplaced.update(is_root=True)  # nothing is before it
    latest = messages.filter(conversation=OuterRef("pk")).order_by("-pk")
    conversations = apps.get_model("chat", "Conversation").objects
    conversations.filter(head=None).update(head=Subquery(latest.values("pk")[:1]))


class Migration(migrations.Migration):
    dependencies = [
        ("chat", "0004_message_tree"),
    ]

    operations = [
        migrations.RunPython(place, migrations.RunPython.noop),
    ]
