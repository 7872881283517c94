"""Django's admin for rows that programs and other people change at the same time."""

from typing import Any

from django.contrib import admin
from django.db import models, transaction
from django.http import Http404, HttpRequest


class RecordAdmin(admin.ModelAdmin):
    """Base of all admin pages: a form writes only edited fields, and only to an existing row."""

    def save_model(self, request: HttpRequest, obj: models.Model, form: Any, change: bool) -> None:
        """Raises Http404 if the row was deleted since the page was opened."""
        if not change:
            super().save_model(request, obj, form, change)
            return
        if not lock(type(obj)._base_manager.filter(pk=obj.pk)):
            raise Http404(f"this {obj._meta.verbose_name} was deleted meanwhile")
        names = {field.name for field in obj._meta.concrete_fields}
        edited = names.intersection(form.changed_data)
        if edited:
            obj.save(update_fields=edited)

    def delete_model(self, request: HttpRequest, obj: models.Model) -> None:
        """Locks the row first: nothing may be added to it, such as a message to a conversation."""
        with transaction.atomic():
            lock(type(obj)._base_manager.filter(pk=obj.pk))
            super().delete_model(request, obj)

    def delete_queryset(self, request: HttpRequest, queryset: models.QuerySet[Any]) -> None:
        """The same for several rows."""
        with transaction.atomic():
            lock(queryset)
            super().delete_queryset(request, queryset)


def lock(rows: models.QuerySet[Any]) -> int:
    """Locks the rows until the transaction ends; returns how many there are."""
    return len(rows.select_for_update().values_list("pk"))
