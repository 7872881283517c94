"""Reading an upload: the body goes to disk while it arrives, and is parsed there.

The handler spools the body of a POST to PATH (`spool`), with the limit of a file instead of that of
other requests. `parse` takes it apart with Django's parser, in a thread.
"""

import asyncio
import tempfile
from collections import defaultdict
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO

from asgiref.sync import sync_to_async
from django.core.exceptions import RequestDataTooBig, SuspiciousOperation
from django.core.files.uploadedfile import TemporaryUploadedFile
from django.core.files.uploadhandler import TemporaryFileUploadHandler
from django.http import HttpRequest
from django.http.multipartparser import MultiPartParserError

from api.errors import ApiError, BodyTooLarge
from api.storage.text import storable

PATH = "/v1/files"
PURPOSES = ("batch", "user_data", "assistants", "vision", "fine-tune", "evals")
FRAME_BYTES = 65_536  # of an upload's body besides the file
LEAST_EXPIRY, MOST_EXPIRY = 3600, 2_592_000  # seconds, as OpenAI has them
AT_ONCE = 16  # uploads of this process that are received at the same time
MOST_OF_SENDER = 4  # of those
_WRITE_BYTES = 1 << 20  # that are gathered for one write


@dataclass(frozen=True, slots=True)
class Upload:
    """A parsed upload. `file` is deleted with `close`, unless it was moved away."""

    file: TemporaryUploadedFile
    filename: str
    purpose: str
    expires_after: int | None  # seconds

    @property
    def path(self) -> Path:
        """Where the file is now."""
        return Path(self.file.temporary_file_path())

    @property
    def size(self) -> int:
        """Bytes."""
        return self.file.size or 0


def is_upload(method: str, path: str) -> bool:
    """Whether a request's body is spooled."""
    return method == "POST" and path == PATH


@dataclass(slots=True)
class _Sender:
    turns: asyncio.Semaphore = field(default_factory=lambda: asyncio.Semaphore(MOST_OF_SENDER))
    uploads: int = 0  # that are received or wait


class Spool:
    """Writes bodies to `directory`, a few at a time."""

    def __init__(self, directory: Path) -> None:
        self._directory = directory
        self._turns = asyncio.Semaphore(AT_ONCE)
        self._senders: defaultdict[str, _Sender] = defaultdict(_Sender)

    async def spool(self, chunks: AsyncIterator[bytes], sender: str) -> IO[bytes]:
        """The body as an open file without a name. Raises what `chunks` raises, and ApiError.

        `sender`: an address. Who sends slowly holds up uploads from there alone.
        """
        async with self._turn(sender):
            file = await asyncio.to_thread(self._open)
            try:
                await self._fill(file, chunks)
            except BaseException:
                file.close()
                raise
            return file

    @asynccontextmanager
    async def _turn(self, name: str) -> AsyncIterator[None]:
        sender = self._senders[name]
        sender.uploads += 1
        try:
            async with sender.turns, self._turns:
                yield
        finally:
            sender.uploads -= 1
            if not sender.uploads:
                del self._senders[name]

    def _open(self) -> IO[bytes]:
        self._directory.mkdir(mode=0o700, parents=True, exist_ok=True)
        return tempfile.TemporaryFile(dir=self._directory)

    async def _fill(self, file: IO[bytes], chunks: AsyncIterator[bytes]) -> None:
        gathered = bytearray()
        try:
            async for chunk in chunks:
                gathered += chunk
                if len(gathered) >= _WRITE_BYTES:
                    await asyncio.to_thread(file.write, bytes(gathered))
                    gathered.clear()
            await asyncio.to_thread(file.write, bytes(gathered))
            await asyncio.to_thread(file.seek, 0)
        except OSError as error:
            raise cannot_store(error) from error


def cannot_store(error: OSError) -> ApiError:
    """503: the disk is full, or does not work."""
    message = f"the file cannot be stored now: {error.strerror or 'the disk does not work'}"
    return ApiError(503, message, code="unavailable")


async def parse(request: HttpRequest, most: int) -> Upload:
    """The upload of a request whose body was spooled. Raises ApiError 400, 413 or 503."""
    if request.content_type != "multipart/form-data":
        message = "body: send multipart/form-data with the fields purpose and file"
        raise ApiError(400, message, field="body", code="invalid_body")
    try:
        # Django's one thread would be blocked for as long as a large file takes.
        await asyncio.to_thread(_load, request)
    except (MultiPartParserError, SuspiciousOperation, RequestDataTooBig, ValueError) as error:
        message = f"body: not multipart/form-data as it should be ({error})"
        raise ApiError(400, message[:300], field="body", code="invalid_body") from error
    except OSError as error:
        raise cannot_store(error) from error
    upload = request.FILES.get("file")
    if not isinstance(upload, TemporaryUploadedFile):
        message = "file: send the file itself as the part named file, with a filename"
        raise ApiError(400, message, field="file", code="missing")
    return _checked(request, upload, most)


def _load(request: HttpRequest) -> None:
    request.upload_handlers = [TemporaryFileUploadHandler(request)]
    _ = request.FILES


def _checked(request: HttpRequest, file: TemporaryUploadedFile, most: int) -> Upload:
    purpose = request.POST.get("purpose", "")
    if purpose not in PURPOSES:
        message = f"purpose: must be one of {', '.join(PURPOSES)}"
        code = "invalid_value" if purpose else "missing"
        raise ApiError(400, message, field="purpose", code=code)
    if not file.size:
        raise ApiError(400, "file: it is empty", field="file", code="invalid_value")
    if file.size > most:
        raise BodyTooLarge(most)
    name = storable(file.name or "upload")[:255]
    return Upload(file, name, purpose, _expires_after(request))


def _expires_after(request: HttpRequest) -> int | None:
    anchor = request.POST.get("expires_after[anchor]", "created_at")
    if anchor != "created_at":
        field = "expires_after[anchor]"
        message = f"{field}: must be created_at"
        raise ApiError(400, message, field=field, code="invalid_value")
    text = request.POST.get("expires_after[seconds]")
    if text is None:
        return None
    if text.isascii() and text.isdecimal() and len(text) < 9:
        seconds = int(text)
        if LEAST_EXPIRY <= seconds <= MOST_EXPIRY:
            return seconds
    field = "expires_after[seconds]"
    message = f"{field}: must be a whole number from {LEAST_EXPIRY} to {MOST_EXPIRY}"
    raise ApiError(400, message, field=field, code="invalid_value")


close = sync_to_async(lambda upload: upload.file.close())
