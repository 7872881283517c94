"""Users, API keys and login tokens. Secrets are stored as SHA-256 digests only."""

from typing import ClassVar

from django.contrib.auth.models import AbstractUser
from django.db import models

from api.storage.records import Record


class Plan(Record):
    """What its users may do; an empty field is no limit. The default one is for all other users.

    `jobs_running` and `jobs_waiting`: of one model, batch jobs apart; `streams`: of one answer.
    """

    name = models.CharField(max_length=80, unique=True)
    requests_per_minute = models.PositiveIntegerField(null=True, blank=True)
    tokens_per_day = models.PositiveBigIntegerField(null=True, blank=True)
    jobs_running = models.PositiveIntegerField(null=True, blank=True)
    jobs_waiting = models.PositiveIntegerField(null=True, blank=True)
    conversations = models.PositiveIntegerField(null=True, blank=True)
    streams = models.PositiveIntegerField(null=True, blank=True)
    is_default = models.BooleanField(default=False, help_text="For users without a plan")

    class Meta:
        ordering: ClassVar = ["name"]
        constraints: ClassVar = [
            models.UniqueConstraint(
                fields=["is_default"],
                condition=models.Q(is_default=True),
                name="one_default_plan",
                violation_error_message="Another plan is the default one.",
            )
        ]

    def __str__(self) -> str:
        return self.name


class User(Record, AbstractUser):
    """A person (or a program) with an account; staff see the tree and the admin."""

    share = models.FloatField(
        default=1.0,
        db_default=1.0,
        help_text="What the user's jobs get while others wait too: with 2, twice as much as a "
        "user with 1. Above 0, at most 100. Programs' keys notice a change after some seconds.",
    )
    plan = models.ForeignKey(
        Plan,
        on_delete=models.SET_NULL,
        null=True,
        blank=True,
        related_name="users",
        help_text="Empty: the default plan",
    )

    class Meta(AbstractUser.Meta):
        constraints: ClassVar = [
            models.CheckConstraint(
                condition=models.Q(share__gt=0, share__lte=100),
                name="a_share_is_above_0",
                violation_error_message="The share must be above 0 and at most 100.",
            )
        ]

    def check_password(self, raw_password: str) -> bool:
        """Never right where somebody else checks who this is, even if one is set at /admin/."""
        return super().check_password(raw_password) and not self.identities.exists()

    async def acheck_password(self, raw_password: str) -> bool:
        """The same on the event loop."""
        right = await super().acheck_password(raw_password)
        return right and not await self.identities.aexists()


class Identity(Record):
    """A user as an LDAP directory or an OpenID provider knows them.

    `provider`: `ldap`, or an issuer; `subject`: what never changes there.
    """

    user = models.ForeignKey(User, on_delete=models.CASCADE, related_name="identities")
    provider = models.CharField(max_length=255)
    subject = models.CharField(max_length=255)
    created = models.DateTimeField(auto_now_add=True)

    class Meta:
        verbose_name_plural = "identities"
        constraints: ClassVar = [
            models.UniqueConstraint(fields=["provider", "subject"], name="one_user_of_an_identity")
        ]

    def __str__(self) -> str:
        return f"{self.user} at {self.provider}"


class ApiKey(Record):
    """A Bearer token of a user. `name`: its public part, by which it is looked up and shown."""

    user = models.ForeignKey(User, on_delete=models.CASCADE, related_name="api_keys")
    name = models.CharField(max_length=16, unique=True)
    label = models.CharField(
        max_length=80, blank=True, default="", db_default="", help_text="The user's own name for it"
    )
    digest = models.CharField(max_length=64, help_text="SHA-256 of the whole key")
    created = models.DateTimeField(auto_now_add=True)
    last_used = models.DateTimeField(null=True, blank=True)
    revoked = models.BooleanField(default=False)
    expires = models.DateTimeField(null=True, blank=True, help_text="Empty: never")
    allowed_models = models.JSONField(
        default=list, db_default=[], blank=True, help_text="It may use; empty: all"
    )
    allowed_endpoints = models.JSONField(
        default=list, db_default=[], blank=True, help_text="Families it may call; empty: all"
    )

    class Meta:
        ordering: ClassVar = ["-created"]
        verbose_name = "API key"

    def __str__(self) -> str:
        return f"{self.name}… of {self.user}"


class LoginToken(Record):
    """The one-time link that `up` prints. A user has at most one."""

    user = models.OneToOneField(User, on_delete=models.CASCADE, related_name="login_token")
    digest = models.CharField(max_length=64)
    expires = models.DateTimeField()

    def __str__(self) -> str:
        return f"login token of {self.user}"


class Login(Record):
    """A browser in which a user is logged in; `session_key` is that of Django's session."""

    user = models.ForeignKey(User, on_delete=models.CASCADE, related_name="logins")
    session_key = models.CharField(max_length=40, unique=True)
    browser = models.CharField(max_length=300, blank=True, help_text="The User-Agent header")
    created = models.DateTimeField(auto_now_add=True)
    last_used = models.DateTimeField(db_index=True)

    class Meta:
        ordering: ClassVar = ["-last_used"]

    def __str__(self) -> str:
        return f"{self.browser[:40]} of {self.user}"


class Allowance(Record):
    """What a user has used of a plan's requests or tokens, and since when (Unix seconds)."""

    user = models.ForeignKey(User, on_delete=models.CASCADE, related_name="allowances")
    kind = models.CharField(max_length=8)
    started = models.FloatField()
    used = models.BigIntegerField(default=0)

    class Meta:
        constraints: ClassVar = [
            models.UniqueConstraint(fields=["user", "kind"], name="one_allowance_of_a_kind")
        ]

    def __str__(self) -> str:
        return f"{self.kind} of {self.user}: {self.used}"


class OpenStream(Record):
    """A stream in which some API process tells a user one answer; see api/plans/streams.py.

    `answer`: its kind and row. `touched`: the process's heartbeat.
    """

    user = models.ForeignKey(User, on_delete=models.CASCADE, related_name="open_streams")
    answer = models.CharField(max_length=128)
    touched = models.DateTimeField()

    class Meta:
        indexes: ClassVar = [
            models.Index(fields=["user", "answer"], name="streams_of_an_answer"),
            models.Index(fields=["touched"], name="streams_by_heartbeat"),
        ]

    def __str__(self) -> str:
        return f"{self.answer} to {self.user}"
