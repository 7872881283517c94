"""GET /healthz: the process answers. GET /readyz: jobs can be taken, stored and served."""

from typing import Any

from django.http import HttpRequest, JsonResponse

from api.context import app
from api.settings import ENV
from broker.node_state import NodeState


async def healthz(request: HttpRequest) -> JsonResponse:
    """Always 200. Pages of other servers may ask, too: a reader's device looks for its server."""
    body = {"status": "ok", "service": "canopy"}
    return JsonResponse(body, headers={"Access-Control-Allow-Origin": "*"})


async def readyz(request: HttpRequest) -> JsonResponse:
    """200, or 503 with what is `missing`; `models` tells which nodes serve each model."""
    models = {model: condition(model) for model in ENV.models}
    missing = await app().readiness.problems()
    for model, nodes in models.items():
        if has_failed(nodes):
            missing.append(f"every node of {model} has failed")
    if missing:
        return JsonResponse({"status": "waiting", "missing": missing, "models": models}, status=503)
    return JsonResponse({"status": "ready", "missing": [], "models": models})


def condition(model: str) -> dict[str, Any]:
    """The model's nodes: how many there are, what they offer, and which of them have failed."""
    nodes: list[NodeState] = []
    failed: list[dict[str, str]] = []
    for state in app().client.nodes().values():
        if state.model != model or state.engine == "none":
            continue
        nodes.append(state)
        if state.status == "failed":
            failed.append({"name": state.name, "detail": state.detail})
    supply = app().catalog.supply(model)
    return {"nodes": len(nodes), "slots": supply.slots, "free": supply.free, "failed": failed}


def has_failed(condition: dict[str, Any]) -> bool:
    """True if every node has failed. With no node at all, jobs simply wait."""
    return condition["nodes"] > 0 and condition["nodes"] == len(condition["failed"])
