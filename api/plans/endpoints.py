"""Plans for administrators: list, put, remove, and who has which."""

from collections.abc import Callable
from typing import Any, TypeVar

from asgiref.sync import sync_to_async
from ninja import Router, Status

from api.accounts.auth import Administrator, AuthRequest
from api.context import app
from api.errors import ApiError
from api.http.documentation import error_statuses
from api.operate.audit.record import recorded
from api.plans import store
from api.plans.limits import LIMITS
from api.plans.schemas import AssignBody, PlanBody, PlanList, PlanNameBody

Result = TypeVar("Result")
router = Router(tags=["operate"], auth=Administrator())


@router.get("", response=PlanList)
async def read(request: AuthRequest) -> dict[str, Any]:
    """Every plan."""
    return {"plans": await sync_to_async(store.listed)()}


@router.put("", response={204: None}, openapi_extra=error_statuses(404))
async def put(request: AuthRequest, body: PlanBody) -> Status[Any]:
    """Makes a plan, or replaces its limits; they hold for the next request."""
    changes = {name: getattr(body, name) for name in LIMITS}
    detail = ", ".join(f"{name}={value}" for name, value in changes.items() if value is not None)
    async with recorded(request, "set plan", body.name, detail):
        await _change(lambda: store.put(body.name, changes, body.default))
    return Status(204, None)


@router.post("/remove", response={204: None}, openapi_extra=error_statuses(404))
async def remove(request: AuthRequest, body: PlanNameBody) -> Status[Any]:
    """Removes a plan; its users get the default one."""
    async with recorded(request, "remove plan", body.name):
        await _change(lambda: store.remove(body.name))
    return Status(204, None)


@router.post("/assign", response={204: None}, openapi_extra=error_statuses(404))
async def assign(request: AuthRequest, body: AssignBody) -> Status[Any]:
    """Gives a user a plan."""
    async with recorded(request, "assign plan", body.user, body.plan or "the default one"):
        await _change(lambda: store.assign(body.user, body.plan))
        app().keys.clear()
    return Status(204, None)


async def _change(work: Callable[[], Result]) -> Result:
    """Raises ApiError 404 for what is not there."""
    try:
        result = await sync_to_async(work)()
    except store.PlanError as error:
        raise ApiError(404, str(error), code="not_found") from error
    await app().plans.changed()
    return result
