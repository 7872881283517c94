"""Devices that want to hear of finished answers."""

from typing import ClassVar

from django.conf import settings
from django.db import models

from api.storage.records import Record


class PushSubscription(Record):
    """One browser of a user. What is sent to `endpoint` only that browser can decrypt.

    `p256dh` and `auth`: the browser's public key and secret in base64url (RFC 8291).
    """

    user = models.ForeignKey(
        settings.AUTH_USER_MODEL, on_delete=models.CASCADE, related_name="push_subscriptions"
    )
    endpoint = models.CharField(max_length=1000, unique=True)
    p256dh = models.CharField(max_length=100)
    auth = models.CharField(max_length=40)
    created = models.DateTimeField(auto_now_add=True)

    class Meta:
        ordering: ClassVar = ["pk"]

    def __str__(self) -> str:
        return f"a browser of {self.user}"
