"""What a user's stored answers took, by day and model, and all requests, by key and model."""

from datetime import timedelta
from typing import Any

from asgiref.sync import sync_to_async
from django.db.models import Count, Sum
from django.db.models.functions import TruncDate
from django.utils import timezone

from api.accounts.models import User
from api.chat.models import Message, Role
from api.operate.usage import store
from api.profile.schemas import DailyUse

_ROWS = 1000


@sync_to_async
def by_day(user: User, days: int) -> list[DailyUse]:
    """The newest days first, at most 1,000 lines."""
    since = timezone.now() - timedelta(days=days)
    answers = Message.objects.filter(
        conversation__user=user, role=Role.ASSISTANT, created__gte=since
    )
    grouped = answers.annotate(day=TruncDate("created")).values("day", "model")
    sums = grouped.annotate(
        requests=Count("pk"),
        prompt=Sum("prompt_tokens"),
        completion=Sum("completion_tokens"),
    )
    lines = sums.order_by("-day", "model")[:_ROWS]
    return [
        DailyUse(
            day=line["day"],
            model=line["model"],
            requests=line["requests"],
            prompt_tokens=line["prompt"],
            completion_tokens=line["completion"],
        )
        for line in lines
    ]


@sync_to_async
def by_key(user: User, days: int) -> list[dict[str, Any]]:
    """The largest use first."""
    today = timezone.now().date()
    since = today - timedelta(days=days - 1)
    return store.read(["key", "model"], since, today, user.get_username())
