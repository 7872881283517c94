"""Feedback in the admin, where staff read it."""

from django.contrib import admin

from api.feedback.models import Feedback
from api.storage.record_admin import RecordAdmin


@admin.register(Feedback)
class FeedbackAdmin(RecordAdmin):
    """Opinions are the readers': nobody else changes them."""

    list_display = ("updated", "good", "note")
    list_filter = ("good",)
    readonly_fields = ("message", "good", "note", "updated")
