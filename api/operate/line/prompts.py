"""Whether operators may see what users ask. Only if an administrator allows it."""

from api.errors import ApiError
from api.operate.line.models import PromptAccess
from api.settings import ENV


async def allowed() -> bool:
    """What CANOPY_OPERATORS_SEE_PROMPTS says; where it says nothing, what is stored."""
    if ENV.operators_see_prompts is not None:
        return ENV.operators_see_prompts
    return await PromptAccess.objects.filter(allowed=True).aexists()


async def require() -> None:
    """Raises ApiError 403 if operators may not see prompts."""
    if not await allowed():
        raise ApiError(
            403,
            "operators do not see prompts here; an administrator can allow it on the line's page",
            code="prompts_hidden",
        )


async def allow(now: bool, who: str) -> None:
    """Stores an administrator's decision. Raises ApiError 409 if the environment has decided."""
    if ENV.operators_see_prompts is not None:
        message = "CANOPY_OPERATORS_SEE_PROMPTS decides this; change it there"
        raise ApiError(409, message, code="refused")
    await PromptAccess.objects.aupdate_or_create(pk=1, defaults={"allowed": now, "who": who})
