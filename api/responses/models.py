"""Stored responses."""

from typing import ClassVar

from django.conf import settings
from django.db import models

from api.answers.record import StoredAnswer


class StoredResponse(StoredAnswer):
    """A response that can be read again, and continued by another one.

    `name`: its id without the prefix, also its first request id. `parameters`: what a response
    repeats of its request; `input`: the request's own items. `previous`: the name of the response
    that this one continues. One in the background is written like a chat answer; any other is
    stored when it has ended. `key` and `fingerprint`: see api/idempotency.
    """

    user = models.ForeignKey(
        settings.AUTH_USER_MODEL, on_delete=models.CASCADE, related_name="responses"
    )
    name = models.CharField(max_length=64, unique=True)
    previous = models.CharField(max_length=64, blank=True, default="")
    background = models.BooleanField(default=False)
    parameters = models.JSONField()
    input = models.JSONField()
    input_size = models.PositiveIntegerField()  # bytes
    key = models.CharField(max_length=255, null=True, blank=True)
    fingerprint = models.CharField(max_length=64, blank=True, default="")

    class Meta:
        ordering: ClassVar = ["-pk"]
        constraints: ClassVar = [
            models.UniqueConstraint(fields=["user", "key"], name="a_key_names_one_response")
        ]
        indexes: ClassVar = [models.Index(fields=["created"])]

    def __str__(self) -> str:
        return self.name
