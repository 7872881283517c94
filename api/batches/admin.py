"""Batches in Django's admin."""

from typing import ClassVar

from django.contrib import admin
from django.http import HttpRequest

from api.batches.models import Batch
from api.storage.record_admin import RecordAdmin


@admin.register(Batch)
class BatchAdmin(RecordAdmin):
    """Batches by their state. Deleting an open one ends it."""

    list_display = ("public_id", "user", "status", "model", "completed", "failed", "total")
    list_filter = ("status", "endpoint")
    search_fields = ("name", "user__username")
    readonly_fields: ClassVar = [field.name for field in Batch._meta.concrete_fields]

    def has_add_permission(self, request: HttpRequest) -> bool:
        """Never: a batch is made from a file."""
        return False
