"""/v1/files, as OpenAI defines it."""

import asyncio
import re
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Annotated, Any, Literal

from django.http import StreamingHttpResponse
from django.http.response import HttpResponseBase
from ninja import Query, Router

from api.accounts.auth import AuthRequest, Key
from api.context import app
from api.errors import ApiError
from api.files import store, upload
from api.files.disk import CHUNK, new_name, opened
from api.files.schemas import DeletedFile, FileList, FileObject, file_object
from api.http.documentation import error_statuses
from api.http.parsing import StorableText
from api.settings import ENV
from broker.threads import in_thread

router = Router(tags=["files"], auth=Key())

_UPLOAD: dict[str, Any] = {
    **error_statuses(403),
    "requestBody": {
        "required": True,
        "content": {
            "multipart/form-data": {
                "schema": {
                    "type": "object",
                    "properties": {
                        "purpose": {"type": "string", "enum": list(upload.PURPOSES)},
                        "file": {"type": "string", "format": "binary", "minLength": 1},
                    },
                    "required": ["purpose", "file"],
                }
            }
        },
    },
}
_NOT_IN_A_HEADER = re.compile(r"[^A-Za-z0-9._-]+")


@router.post("/files", response=FileObject, openapi_extra=_UPLOAD)
async def create_file(request: AuthRequest) -> FileObject:
    """Uploads a file: multipart/form-data with `purpose` and `file`."""
    uploaded = await upload.parse(request, ENV.files.file_bytes)
    try:
        return file_object(await _store(request, uploaded))
    finally:
        await upload.close(uploaded)


async def _store(request: AuthRequest, uploaded: upload.Upload) -> Any:
    contents, name, size = app().contents, new_name(), uploaded.size
    try:
        try:
            await in_thread(contents.adopt, uploaded.path, name)
        except OSError as error:
            raise upload.cannot_store(error) from error
        return await store.create(
            request.auth,
            ENV.files,
            content=name,
            filename=uploaded.filename,
            purpose=uploaded.purpose,
            size=size,
            expires=store.expiry(ENV.files, uploaded.expires_after),
        )
    except BaseException:
        await asyncio.to_thread(contents.delete, name)
        raise


@router.get("/files", response=FileList)
async def list_files(
    request: AuthRequest,
    purpose: StorableText | None = None,
    after: str | None = None,
    order: Literal["asc", "desc"] = "desc",
    limit: Annotated[int, Query(ge=1, le=store.MOST_LISTED)] = store.MOST_LISTED,
) -> FileList:
    """My files, newest first unless `order` is `asc`."""
    last = None if after is None else await store.find(request.auth, after, "after")
    rows = await store.listed(
        request.auth, purpose=purpose, after=last, newest_first=order == "desc", limit=limit + 1
    )
    return FileList.page([file_object(row) for row in rows], limit)


@router.get("/files/{file_id}", response=FileObject)
async def read_file(request: AuthRequest, file_id: str) -> FileObject:
    """One of my files, without its content."""
    return file_object(await store.find(request.auth, file_id))


@router.delete("/files/{file_id}", response=DeletedFile, openapi_extra=error_statuses(409))
async def delete_file(request: AuthRequest, file_id: str) -> DeletedFile:
    """Deletes one of my files."""
    file = await store.find(request.auth, file_id)
    await store.check_unused(file)
    await store.delete(file, app().contents)
    return DeletedFile(id=file.public_id)


@router.get(
    "/files/{file_id}/content",
    openapi_extra={
        "responses": {
            200: {
                "content": {
                    "application/octet-stream": {"schema": {"type": "string", "format": "binary"}}
                }
            }
        }
    },
)
async def read_content(request: AuthRequest, file_id: str) -> HttpResponseBase:
    """The content of one of my files."""
    file = await store.find(request.auth, file_id)
    path = app().contents.path(file.content)
    if not await asyncio.to_thread(path.is_file):
        raise ApiError(404, "the content of this file is gone", code="not_found")
    name = _NOT_IN_A_HEADER.sub("_", file.filename) or "file"
    return StreamingHttpResponse(
        _chunks(path),
        content_type="application/octet-stream",
        headers={
            "Content-Length": str(file.size),
            "Content-Disposition": f'attachment; filename="{name}"',
            "Cache-Control": "no-store",
        },
    )


async def _chunks(path: Path) -> AsyncIterator[bytes]:
    with await opened(path) as file:
        while chunk := await asyncio.to_thread(file.read, CHUNK):
            yield chunk
