"""Every query on a person's own keys and account."""

from asgiref.sync import sync_to_async
from django.db import transaction
from django.utils import timezone

from api.accounts import keys
from api.accounts.models import ApiKey, User
from api.answers import following
from api.chat.models import Message, Status
from api.errors import ApiError
from api.profile.schemas import NewKey

MAX_KEYS = 100  # of one user, not counting revoked ones


async def list_keys(user: User) -> list[ApiKey]:
    """The user's keys that are not revoked, newest first."""
    rows = ApiKey.objects.filter(user=user, revoked=False).order_by("-created", "-pk")
    return [key async for key in rows[:MAX_KEYS]]


@sync_to_async
@transaction.atomic
def create_key(user: User, wanted: NewKey) -> tuple[ApiKey, str]:
    """A new key: its row, and the secret.

    Raises ApiError 400 if it would have expired already, 409 beyond MAX_KEYS.
    """
    if wanted.expires is not None and wanted.expires <= timezone.now():
        raise ApiError(400, "expires: must be in the future", field="expires", code="invalid_value")
    User.objects.select_for_update().get(pk=user.pk)
    if ApiKey.objects.filter(user=user, revoked=False).count() >= MAX_KEYS:
        message = f"you have {MAX_KEYS} keys already; revoke one first"
        raise ApiError(409, message, code="too_many_keys", params={"most": MAX_KEYS})
    secret = keys.create(
        user,
        wanted.label,
        expires=wanted.expires,
        models=wanted.models,
        endpoints=wanted.endpoints,
    )
    return ApiKey.objects.filter(user=user).latest("pk"), secret


async def revoke_key(user: User, number: int) -> bool:
    """Makes a key invalid for ever; False if the user has none of that number."""
    rows = ApiKey.objects.filter(user=user, pk=number, revoked=False)
    return await rows.aupdate(revoked=True) > 0


async def revoke_all(user: User) -> None:
    """Makes all keys of the user invalid for ever."""
    await ApiKey.objects.filter(user=user, revoked=False).aupdate(revoked=True)


async def delete_account(user: User) -> None:
    """Stops the user's answers, then removes the account with all that belongs to it.

    Raises ApiError 409 for the only administrator.
    """
    if user.is_superuser and not await _other_administrators(user):
        message = "you are the only administrator; give somebody else that role first"
        raise ApiError(409, message, code="last_administrator")
    running = Message.objects.filter(conversation__user=user, status=Status.STREAMING)
    async for answer in running:
        await following.stop(answer)
    await User.objects.filter(pk=user.pk).adelete()


async def _other_administrators(user: User) -> bool:
    others = User.objects.filter(is_superuser=True, is_active=True).exclude(pk=user.pk)
    return await others.aexists()
