"""Models: the list, load and stop one, its card and limits, its autoscaling rule."""

from dataclasses import asdict
from typing import Any

from ninja import Router, Status

from api.accounts.auth import AuthRequest, Staff
from api.context import app
from api.errors import ApiError
from api.http.documentation import error_statuses
from api.operate.audit.record import recorded
from api.operate.models import store, view
from api.operate.models.schemas import (
    CardBody,
    LoadBody,
    ModelBody,
    ModelList,
    RuleBody,
    card_of,
    described,
    rule_of,
)

router = Router(tags=["operate"], auth=Staff())


@router.get("", response=ModelList)
async def read(request: AuthRequest) -> ModelList:
    """Every model that is served, may be loaded, or has settings."""
    models = view.served(
        await app().tree.now(),
        app().hosts.states(),
        app().catalog.context_lengths(),
        await store.stored_cards(),
        await store.stored_rules(),
    )
    return ModelList(models=models)


@router.post("/load", response={202: None}, openapi_extra=error_statuses(404, 409))
async def load(request: AuthRequest, body: LoadBody) -> Status[Any]:
    """Starts the root of a model's tree and its first node, on a host that allows the model."""
    async with recorded(request, "load model", body.model, body.host) as entry:
        entry.result = "goes on"
        await app().model_trees.load(body.host, body.first_node(), entry)
    return Status(202, None)


@router.post("/stop", response={202: None}, openapi_extra=error_statuses(404))
async def stop(request: AuthRequest, body: ModelBody) -> Status[Any]:
    """Has all nodes of a model leave, its root last; new requests for it get 404 or 503."""
    async with recorded(request, "stop model", body.model) as entry:
        entry.result = "goes on"
        await app().model_trees.stop(body.model, entry)
    return Status(202, None)


@router.put("/settings", response={204: None})
async def put_settings(request: AuthRequest, body: CardBody) -> Status[Any]:
    """Sets a model's description, limits and defaults; they hold for the next request.

    What is left out is cleared.
    """
    card = card_of(body)
    async with recorded(request, "change model", body.model, described(card)):
        await app().cards.put(body.model, card)
    return Status(204, None)


@router.put("/autoscale", response={204: None})
async def put_rule(request: AuthRequest, body: RuleBody) -> Status[Any]:
    """Has the autoscaler keep the model between `least` and `most` nodes."""
    rule = rule_of(body)
    detail = ", ".join(f"{name}={value}" for name, value in asdict(rule).items())
    async with recorded(request, "set autoscaler", body.model, detail):
        await store.store_rule(body.model, rule)
    return Status(204, None)


@router.post("/autoscale/off", response={204: None}, openapi_extra=error_statuses(404))
async def remove_rule(request: AuthRequest, body: ModelBody) -> Status[Any]:
    """Leaves the model's nodes to people again."""
    async with recorded(request, "autoscaler off", body.model):
        if not await store.remove_rule(body.model):
            message = f"{body.model} has no autoscaling rule"
            raise ApiError(404, message, field="model", code="not_found")
    return Status(204, None)
