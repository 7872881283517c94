"""Stored responses in Django's admin."""

from typing import ClassVar

from django.contrib import admin

from api.responses.models import StoredResponse
from api.storage.record_admin import RecordAdmin


@admin.register(StoredResponse)
class StoredResponseAdmin(RecordAdmin):
    """Responses by their state."""

    list_display = ("name", "user", "status", "background", "created")
    list_filter = ("status", "background")
    search_fields = ("name", "request_id", "user__username")
    fields = ("user", "name", "previous", "status", "background", "error", "created", "touched")
    readonly_fields: ClassVar = [*fields]
