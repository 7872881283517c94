"""Accounts in Django's admin."""

from typing import ClassVar

from django.contrib import admin
from django.contrib.auth.admin import UserAdmin
from django.http import HttpRequest

from api.accounts.models import ApiKey, Identity, Plan, User
from api.plans.limits import LIMITS
from api.storage.record_admin import RecordAdmin


@admin.register(User)
class Users(RecordAdmin, UserAdmin):
    """Users, with their share."""

    list_display = (*UserAdmin.list_display, "share", "plan")
    list_select_related: ClassVar = ["plan"]
    fieldsets: ClassVar = [*UserAdmin.fieldsets, ("Fairness", {"fields": ["share", "plan"]})]


@admin.register(Plan)
class Plans(RecordAdmin):
    """Plans; API processes notice a change here within ten seconds."""

    list_display = ("name", *LIMITS, "is_default")


@admin.register(Identity)
class Identities(RecordAdmin):
    """Whom a directory or a provider knows; `./canopy user link` makes one."""

    list_display = ("user", "provider", "subject", "created")
    list_select_related: ClassVar = ["user"]
    readonly_fields: ClassVar = ["user", "provider", "subject", "created"]

    def has_add_permission(self, request: HttpRequest) -> bool:
        """Never: a link also ends sessions and the password."""
        return False


@admin.register(ApiKey)
class ApiKeyAdmin(RecordAdmin):
    """Keys can be revoked and deleted here; `./canopy key create` makes and shows them."""

    list_display = ("name", "user", "created", "last_used", "expires", "revoked")
    list_filter = ("revoked",)
    readonly_fields: ClassVar = [
        "user",
        "name",
        "created",
        "last_used",
        "allowed_models",
        "allowed_endpoints",
    ]
    exclude: ClassVar = ["digest"]

    def has_add_permission(self, request: HttpRequest) -> bool:
        """Never: a key made here could not be shown."""
        return False
