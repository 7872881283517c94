"""Stored jobs in Django's admin."""

from typing import ClassVar

from django.contrib import admin
from django.http import HttpRequest

from api.jobs.models import StoredJob
from api.storage.record_admin import RecordAdmin


@admin.register(StoredJob)
class StoredJobAdmin(RecordAdmin):
    """Stored jobs by their state, without what they ask and what was answered."""

    list_display = ("public_id", "user", "endpoint", "model", "status", "webhook", "created")
    list_filter = ("status", "endpoint", "webhook")
    search_fields = ("name", "request_id", "user__username")
    exclude: ClassVar = ["body", "reply", "webhook_secret"]
    readonly_fields: ClassVar = [
        field.name
        for field in StoredJob._meta.concrete_fields
        if field.name not in ("body", "reply", "webhook_secret")
    ]

    def has_add_permission(self, request: HttpRequest) -> bool:
        """Never: a job is made by a request."""
        return False
