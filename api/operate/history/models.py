"""Stored history: one row for each minute or hour, kind, name and process that saw something."""

from typing import ClassVar

from django.db import models

from api.storage.records import Record


class HistoryRow(Record):
    """Sums over `seconds` (60 or 3600) from `start` (Unix seconds), which divides by them.

    A minute has a row of each API process that saw something, an hour has their sum (its `process`
    is empty).
    `waits` and `services`: histograms (histogram.py).
    """

    seconds = models.PositiveIntegerField()
    start = models.BigIntegerField()
    kind = models.CharField(max_length=5)
    name = models.CharField(max_length=255)
    process = models.CharField(max_length=100, blank=True)
    requests = models.BigIntegerField(default=0)
    failed = models.BigIntegerField(default=0)
    cancelled = models.BigIntegerField(default=0)
    prompt_tokens = models.BigIntegerField(default=0)
    completion_tokens = models.BigIntegerField(default=0)
    busy_seconds = models.FloatField(default=0.0)
    slot_seconds = models.FloatField(default=0.0)
    waits = models.TextField(blank=True)
    services = models.TextField(blank=True)

    class Meta:
        constraints: ClassVar = [
            models.UniqueConstraint(
                fields=["seconds", "kind", "start", "name", "process"], name="history_once"
            )
        ]
        indexes: ClassVar = [models.Index(fields=["seconds", "start"], name="history_age")]

    def __str__(self) -> str:
        return f"{self.kind} {self.name}, {self.seconds} s from {self.start}"


class UsageRow(Record):
    """What a user asked of a model with a key on a day (UTC). See api/operate/usage.

    By name, as jobs carry it: the use of an account that was removed stays. `key`: its public part;
    empty for the pages.
    """

    day = models.DateField()
    user = models.CharField(max_length=150)
    key = models.CharField(max_length=16, blank=True)
    model = models.CharField(max_length=255)
    requests = models.BigIntegerField(default=0)
    failed = models.BigIntegerField(default=0)
    prompt_tokens = models.BigIntegerField(default=0)
    completion_tokens = models.BigIntegerField(default=0)

    class Meta:
        constraints: ClassVar = [
            models.UniqueConstraint(fields=["day", "user", "key", "model"], name="usage_once")
        ]
        indexes: ClassVar = [models.Index(fields=["user", "day"], name="usage_of_user")]

    def __str__(self) -> str:
        return f"{self.user}, {self.day}: {self.requests} requests to {self.model}"
