"""GET /healthz: the process answers. GET /readyz: so do its broker and its database."""

import threading

from asgiref.sync import sync_to_async
from django.db import DatabaseError, connection
from django.db.migrations.executor import MigrationExecutor
from django.http import HttpRequest, JsonResponse

from api import broker


async def healthz(request: HttpRequest) -> JsonResponse:
    """Always 200."""
    return JsonResponse({"status": "ok"})


async def readyz(request: HttpRequest) -> JsonResponse:
    """200 if the broker is connected and the database migrated, else 503 with what is missing."""
    missing = [] if broker.client().connected else ["the broker is not connected"]
    problem = await sync_to_async(_database_problem)()
    missing += [problem] if problem else []
    status = "waiting" if missing else "ready"
    return JsonResponse({"status": status, "missing": missing}, status=503 if missing else 200)


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
