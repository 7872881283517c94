"""Conversations in Django's admin."""

from typing import ClassVar

from django.contrib import admin

from api.chat.models import Conversation, Message
from api.storage.record_admin import RecordAdmin


class Messages(admin.TabularInline):
    """A conversation's messages, read-only."""

    model = Message
    extra = 0
    can_delete = False
    fields = ("role", "status", "content", "error", "created")
    readonly_fields = fields


@admin.register(Conversation)
class ConversationAdmin(RecordAdmin):
    """Conversations by user."""

    list_display = ("title", "user", "model", "updated")
    list_filter = ("model",)
    search_fields = ("title", "user__username")
    inlines: ClassVar = [Messages]
    readonly_fields = ("user", "created", "updated")


@admin.register(Message)
class MessageAdmin(RecordAdmin):
    """Messages by their state."""

    list_display = ("conversation", "role", "status", "created")
    list_filter = ("status", "role")
    readonly_fields = ("conversation", "request_id", "owner", "created", "touched")
