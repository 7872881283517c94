"""Writing the audit log.

async with recorded(request, "drain", name):
    await client.control(name, Drain())
"""

import contextlib
from collections.abc import AsyncIterator

from api.accounts.auth import AuthRequest
from api.errors import ApiError
from api.operate.audit.models import AuditEntry
from api.operate.audit.store import command_user, cut, finish

BEGAN = "began"
DONE = "done"


async def record(
    request: AuthRequest, action: str, target: str, detail: str = "", result: str = DONE
) -> AuditEntry:
    """Stores what the request's user did to `target`; longer texts are cut.

    Raises DatabaseError if it cannot be stored: then the action must not happen.
    """
    return await AuditEntry.objects.acreate(
        user=request.auth,
        who=request.auth.get_username(),
        action=cut(action, "action"),
        target=cut(target, "target"),
        detail=cut(detail, "detail"),
        result=cut(result, "result"),
    )


def record_command(action: str, target: str, detail: str = "", result: str = DONE) -> AuditEntry:
    """Stores what somebody did on the command line of this machine. Blocks."""
    return AuditEntry.objects.create(
        who=cut(command_user(), "who"),
        action=cut(action, "action"),
        target=cut(target, "target"),
        detail=cut(detail, "detail"),
        result=cut(result, "result"),
    )


@contextlib.asynccontextmanager
async def recorded(
    request: AuthRequest, action: str, target: str, detail: str = ""
) -> AsyncIterator[AuditEntry]:
    """Records an action before it begins, and its result when it has ended.

    The result is "done" or what the action set as the entry's `result`; the refusal's text after
    an ApiError; after any other error nobody knows it, and it stays "began".
    """
    entry = await record(request, action, target, detail, BEGAN)
    try:
        yield entry
    except ApiError as error:
        await finish(entry, error.message)
        raise
    if entry.result == BEGAN:
        entry.result = DONE
    await finish(entry, entry.result)
