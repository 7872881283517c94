"""The queries on subscriptions."""

from asgiref.sync import sync_to_async
from django.db import transaction

from api.accounts.models import User
from api.push.models import PushSubscription

BROWSERS = 10  # of one user; the oldest makes room


@sync_to_async
@transaction.atomic
def subscribe(user: User, endpoint: str, p256dh: str, auth: str) -> None:
    """Stores a browser, also one that somebody else was logged in with before."""
    fields = {"user": user, "p256dh": p256dh, "auth": auth}
    PushSubscription.objects.update_or_create(endpoint=endpoint, defaults=fields)
    newest = PushSubscription.objects.filter(user=user).order_by("-pk")
    surplus = list(newest.values_list("pk", flat=True)[BROWSERS:])
    PushSubscription.objects.filter(pk__in=surplus).delete()


async def unsubscribe(user: User, endpoint: str) -> None:
    """Removes the user's browser."""
    await PushSubscription.objects.filter(user=user, endpoint=endpoint).adelete()


async def of_user(user: int) -> list[PushSubscription]:
    """The user's browsers."""
    return [row async for row in PushSubscription.objects.filter(user=user)]


async def remove(subscription: PushSubscription) -> None:
    """Removes a browser that its push service does not know any more."""
    await PushSubscription.objects.filter(pk=subscription.pk).adelete()
