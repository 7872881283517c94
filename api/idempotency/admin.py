"""Idempotent requests in Django's admin."""

from typing import ClassVar

from django.contrib import admin

from api.idempotency.models import KeptRequest
from api.storage.record_admin import RecordAdmin


@admin.register(KeptRequest)
class KeptRequestAdmin(RecordAdmin):
    """Idempotent requests by their state."""

    list_display = ("key", "user", "status", "created")
    list_filter = ("status",)
    search_fields = ("key", "request_id", "user__username")
    fields = ("user", "key", "request_id", "status", "content", "error", "created", "touched")
    readonly_fields: ClassVar = [*fields]
