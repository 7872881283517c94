"""Files in Django's admin."""

from typing import ClassVar

from django.contrib import admin
from django.http import HttpRequest

from api.files.models import StoredFile
from api.storage.record_admin import RecordAdmin


@admin.register(StoredFile)
class StoredFileAdmin(RecordAdmin):
    """Files by their user and purpose; what is deleted here disappears from the disk later."""

    list_display = ("public_id", "user", "purpose", "size", "created", "expires")
    list_filter = ("purpose",)
    search_fields = ("content", "filename", "user__username")
    fields = ("user", "content", "filename", "purpose", "size", "created", "expires")
    readonly_fields: ClassVar = [*fields]

    def has_add_permission(self, request: HttpRequest) -> bool:
        """Never: a row without content would be of no use."""
        return False
