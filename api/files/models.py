"""Files in the database: everything but their content."""

from typing import ClassVar

from django.conf import settings
from django.db import models

from api.storage.records import Record

PREFIX = "file-"


class StoredFile(Record):
    """A file of a user. `content`: its name on disk (disk.py), which no client has chosen."""

    user = models.ForeignKey(
        settings.AUTH_USER_MODEL, on_delete=models.CASCADE, related_name="files"
    )
    content = models.CharField(max_length=32, unique=True)
    filename = models.CharField(max_length=255)
    purpose = models.CharField(max_length=32)
    size = models.BigIntegerField()  # bytes
    created = models.DateTimeField(auto_now_add=True)
    expires = models.DateTimeField(db_index=True)

    class Meta:
        ordering: ClassVar = ["-pk"]
        indexes: ClassVar = [models.Index(fields=["user", "-id"])]

    def __str__(self) -> str:
        return self.public_id

    @property
    def public_id(self) -> str:
        """As clients name it."""
        return PREFIX + self.content
