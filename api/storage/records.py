"""Rows that a save never brings back.

Django's plain `save()` updates the row and, if it is gone, inserts it: saving an instance that was
loaded before somebody else deleted its row would bring the row back. Here a loaded instance can
only be updated.
"""

from typing import Any

from django.db import models


class Record(models.Model):
    """Base of all models: saving an instance whose row is gone raises DatabaseError."""

    class Meta:
        abstract = True

    def save(self, **options: Any) -> None:
        """Inserts a new instance, updates one that was loaded or saved before."""
        forced = options.get("force_insert") or options.get("update_fields") is not None
        if not self._state.adding and not forced:
            options["force_update"] = True
        super().save(**options)
