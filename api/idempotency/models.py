"""Idempotent requests and their answers."""

from typing import ClassVar

from django.conf import settings
from django.db import models

from api.answers.record import StoredAnswer


class KeptRequest(StoredAnswer):
    """A request with an Idempotency-Key.

    `fingerprint`: of its path and body, because a key must not be used for another request.
    """

    user = models.ForeignKey(
        settings.AUTH_USER_MODEL, on_delete=models.CASCADE, related_name="kept_requests"
    )
    key = models.CharField(max_length=255)
    fingerprint = models.CharField(max_length=64)

    class Meta:
        ordering: ClassVar = ["-pk"]
        constraints: ClassVar = [
            models.UniqueConstraint(fields=["user", "key"], name="a_key_names_one_request")
        ]
        indexes: ClassVar = [models.Index(fields=["created"])]

    def __str__(self) -> str:
        return self.key
