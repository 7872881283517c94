"""GET /healthz: the process answers. GET /readyz: so do its broker and its database, and no model is without a node
that could serve it.
"""

import threading
from typing import Any

from asgiref.sync import sync_to_async
from django.db import DatabaseError, connection
from django.db.migrations.executor import MigrationExecutor
from django.http import HttpRequest, JsonResponse

from api import broker
from api.catalog import supply
from api.settings import ENV
from broker.wire import NodeState


async def healthz(request: HttpRequest) -> JsonResponse:
    """Always 200."""
    return JsonResponse({"status": "ok"})


async def readyz(request: HttpRequest) -> JsonResponse:
    """200 if jobs can be taken, stored and served; else 503 with what is missing. `models` says who serves them."""
    models = {model: condition(model) for model in ENV.models}
    missing = [] if broker.client().connected else [NO_BROKER]
    problem = await sync_to_async(_database_problem)()
    missing += [problem] if problem else []
    missing += [f"every node of {model} has failed" for model, found in models.items() if has_failed(found)]
    status = "waiting" if missing else "ready"
    return JsonResponse({"status": status, "missing": missing, "models": models}, status=503 if missing else 200)


NO_BROKER = "the broker takes no jobs: it is not connected, or short of memory or disk"


def condition(model: str) -> dict[str, Any]:
    """The model's nodes: how many there are, what they offer, and which of them have failed."""
    nodes = [state for state in broker.client().nodes().values() if state.model == model and state.engine != "none"]
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


_migrated = threading.Event()


def _database_problem() -> str | None:
    """Migrations are looked up until they are complete; after that a query suffices."""
    try:
        if not _migrated.is_set():
            executor = MigrationExecutor(connection)
            if executor.migration_plan(executor.loader.graph.leaf_nodes()):
                return "the database is not migrated"
            _migrated.set()
        with connection.cursor() as cursor:
            cursor.execute("SELECT 1")
    except DatabaseError as error:
        return f"the database does not answer: {error}"
    return None
