"""GET /healthz: the process answers. GET /readyz: so do its broker and its database, what must be stored can be, and
no model is without a node that could serve it.
"""

import asyncio
from typing import Any

from asgiref.sync import sync_to_async
from django.http import HttpRequest, JsonResponse

from api import broker
from api.catalog import supply
from api.health import storage
from api.health.probe import Probe
from api.settings import ENV
from broker.wire import NodeState

NO_BROKER = "the broker takes no jobs: it is not connected, or short of memory or disk"
SILENT_BROKER = "the broker does not answer: its connection may be cut off"
SILENT_DATABASE = "the database does not answer"


async def _broker_problem() -> str | None:
    if not broker.client().connected:
        return NO_BROKER
    return await _broker_probe.problem()


async def _broker_silence() -> str | None:
    return None if await broker.client().responds() else SILENT_BROKER


async def _storage_problem() -> str | None:
    return await sync_to_async(storage.problem)()


_broker_probe = Probe(_broker_silence, silence=SILENT_BROKER)
_storage_probe = Probe(_storage_problem, silence=SILENT_DATABASE)


async def healthz(request: HttpRequest) -> JsonResponse:
    """Always 200."""
    return JsonResponse({"status": "ok"})


async def readyz(request: HttpRequest) -> JsonResponse:
    """200 if jobs can be taken, stored and served; else 503 with what is missing. `models` says who serves them."""
    models = {model: condition(model) for model in ENV.models}
    problems = await asyncio.gather(_broker_problem(), _storage_probe.problem())
    missing = [problem for problem in problems if problem is not None]
    missing += [
        f"every node of {model} has failed" for model, found in models.items() if has_failed(found)
    ]
    status = "waiting" if missing else "ready"
    return JsonResponse(
        {"status": status, "missing": missing, "models": models}, status=503 if missing else 200
    )


def condition(model: str) -> dict[str, Any]:
    """The model's nodes: how many there are, what they offer, and which of them have failed."""
    nodes = [
        state
        for state in broker.client().nodes().values()
        if state.model == model and state.engine != "none"
    ]
    offer = supply(model)
    return {
        "nodes": len(nodes),
        "slots": offer.slots,
        "free": offer.free,
        "failed": [_failure(state) for state in nodes if state.status == "failed"],
    }


def has_failed(found: dict[str, Any]) -> bool:
    """True if there are nodes and every one has failed. For a model without any node jobs simply wait."""
    return found["nodes"] > 0 and found["nodes"] == len(found["failed"])


def _failure(state: NodeState) -> dict[str, str]:
    return {"name": state.name, "detail": state.detail}
