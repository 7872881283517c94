"""One line of the audit log."""

from typing import ClassVar

from django.conf import settings
from django.db import models

from api.storage.records import Record


class AuditEntry(Record):
    """An operator's action, or a look at a prompt. Only its result ever changes.

    `who`: the name at that time, which outlives the account; `result`: "began" while the action
    runs, and for ever if the process died meanwhile.
    """

    when = models.DateTimeField(auto_now_add=True, db_index=True)
    user = models.ForeignKey(
        settings.AUTH_USER_MODEL, null=True, on_delete=models.SET_NULL, related_name="+"
    )
    who = models.CharField(max_length=150)
    action = models.CharField(max_length=60)
    target = models.CharField(max_length=200)
    detail = models.CharField(max_length=500, blank=True)
    result = models.CharField(max_length=300)

    class Meta:
        ordering: ClassVar = ["-pk"]
        verbose_name_plural = "audit entries"

    def __str__(self) -> str:
        return f"{self.who}: {self.action} {self.target}"
