"""/v1/batches, as OpenAI defines it."""

from typing import Annotated

from ninja import Query, Router

from api.accounts import scopes
from api.accounts.auth import AuthRequest, Key
from api.batches import store
from api.batches.schemas import BatchList, BatchObject, NewBatch, batch_object, window
from api.context import app
from api.errors import ApiError
from api.files import store as files
from api.http.documentation import error_statuses

router = Router(tags=["batches"], auth=Key())

MOST_LISTED = 100


@router.post("/batches", response=BatchObject, openapi_extra=error_statuses(403, 404))
async def create_batch(request: AuthRequest, body: NewBatch) -> BatchObject:
    """Answers all lines of a file in the background, after interactive requests."""
    scopes.current.get().check_path(body.endpoint)
    length = window(body.completion_window)
    if length is None:
        raise AssertionError("the body's validator lets no other window through")
    file = await files.find(request.auth, body.input_file_id, "input_file_id")
    if file.purpose != "batch":
        message = "input_file_id: upload the file with the purpose batch"
        raise ApiError(400, message, field="input_file_id", code="invalid_value")
    expiry = body.output_expires_after
    batch = await store.create(
        request.auth,
        file,
        length,
        endpoint=body.endpoint,
        window=body.completion_window,
        metadata=body.metadata,
        output_seconds=None if expiry is None else expiry.seconds,
    )
    app().batches.wake()
    return batch_object(batch)


@router.get("/batches", response=BatchList)
async def list_batches(
    request: AuthRequest,
    after: str | None = None,
    limit: Annotated[int, Query(ge=1, le=MOST_LISTED)] = 20,
) -> BatchList:
    """My batches, newest first."""
    last = None if after is None else await store.find(request.auth, after, "after")
    rows = await store.listed(request.auth, last, limit + 1)
    return BatchList.page([batch_object(row) for row in rows], limit)


@router.get("/batches/{batch_id}", response=BatchObject)
async def read_batch(request: AuthRequest, batch_id: str) -> BatchObject:
    """One of my batches, with its progress."""
    return batch_object(await store.find(request.auth, batch_id))


@router.post("/batches/{batch_id}/cancel", response=BatchObject, openapi_extra=error_statuses(409))
async def cancel_batch(request: AuthRequest, batch_id: str) -> BatchObject:
    """Ends a batch: what is answered by then is in its files."""
    batch = await store.find(request.auth, batch_id)
    await store.cancel(batch)
    return batch_object(await store.find(request.auth, batch_id))
