"""The audit log in Django's admin, to read only."""

from django.contrib import admin
from django.http import HttpRequest

from api.operate.audit.models import AuditEntry


@admin.register(AuditEntry)
class AuditEntryAdmin(admin.ModelAdmin):
    """Nobody changes the log."""

    list_display = ("when", "who", "action", "target", "detail", "result")
    list_filter = ("action",)
    search_fields = ("who", "target", "detail")

    def has_add_permission(self, request: HttpRequest) -> bool:
        """Never."""
        return False

    def has_change_permission(self, request: HttpRequest, obj: AuditEntry | None = None) -> bool:
        """Never."""
        return False

    def has_delete_permission(self, request: HttpRequest, obj: AuditEntry | None = None) -> bool:
        """Never: old entries go by themselves."""
        return False
