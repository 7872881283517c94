"""The queries on preferences. A user's rows are only ever reached through the user."""

from asgiref.sync import sync_to_async
from django.db import IntegrityError, transaction

from api.accounts.models import User
from api.errors import ApiError
from api.preferences.models import ConversationStyle, Preset, UserStyle
from api.preferences.style import Style, of_row

MAX_PRESETS = 50  # of one user


def effective(user: User, conversation: int) -> Style:
    """How answers in this conversation are wanted. Blocks."""
    own = of_row(UserStyle.objects.filter(user=user).first())
    return own.refined_by(
        of_row(ConversationStyle.objects.filter(conversation=conversation).first())
    )


async def of_user(user: User) -> Style:
    """The user's own."""
    return of_row(await UserStyle.objects.filter(user=user).afirst())


async def set_of_user(user: User, style: Style) -> None:
    """Replaces the user's own."""
    await UserStyle.objects.aupdate_or_create(user=user, defaults=_fields(style))


async def of_conversation(user: User, number: int) -> Style:
    """The conversation's own."""
    rows = ConversationStyle.objects.filter(conversation=number, conversation__user=user)
    return of_row(await rows.afirst())


async def set_of_conversation(number: int, style: Style) -> None:
    """Replaces the conversation's own; the caller has checked whose it is."""
    await ConversationStyle.objects.aupdate_or_create(
        conversation_id=number, defaults={**_fields(style), "preset": ""}
    )


async def apply_preset(user: User, number: int, preset: int | None) -> str:
    """Makes a preset the conversation's own style; None: the conversation has none any more.

    Returns the preset's name. The caller has checked whose conversation it is. Raises ApiError 404.
    """
    if preset is None:
        await ConversationStyle.objects.filter(conversation=number).adelete()
        return ""
    row = await Preset.objects.filter(user=user, pk=preset).afirst()
    if row is None:
        raise ApiError(404, "there is no such preset", field="preset", code="not_found")
    fields = {**_fields(of_row(row)), "preset": row.name}
    await ConversationStyle.objects.aupdate_or_create(conversation_id=number, defaults=fields)
    return row.name


async def preset_of(number: int) -> str:
    """The name of the preset that a conversation has; empty for none."""
    names = ConversationStyle.objects.filter(conversation=number).values_list("preset", flat=True)
    return await names.afirst() or ""


async def presets(user: User) -> list[Preset]:
    """The user's presets by name."""
    return [preset async for preset in Preset.objects.filter(user=user)[:MAX_PRESETS]]


@sync_to_async
def add_preset(user: User, name: str, style: Style) -> Preset:
    """Stores a preset. Raises ApiError 409 for a name that exists, or beyond MAX_PRESETS."""
    try:
        with transaction.atomic():
            User.objects.select_for_update().get(pk=user.pk)
            if Preset.objects.filter(user=user).count() >= MAX_PRESETS:
                message = f"you have {MAX_PRESETS} presets already; remove one first"
                raise ApiError(409, message, code="too_many_presets", params={"most": MAX_PRESETS})
            return Preset.objects.create(user=user, name=name, **_fields(style))
    except IntegrityError as error:
        raise ApiError(
            409, "there is a preset of this name", field="name", code="preset_exists"
        ) from error


async def remove_preset(user: User, number: int) -> bool:
    """False if the user has none of that number."""
    deleted, _ = await Preset.objects.filter(user=user, pk=number).adelete()
    return deleted > 0


def _fields(style: Style) -> dict[str, object]:
    return {
        "instructions": style.instructions,
        "temperature": style.temperature,
        "top_p": style.top_p,
        "max_tokens": style.max_tokens,
    }
