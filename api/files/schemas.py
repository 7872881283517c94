"""What /v1/files answers, as OpenAI's clients read it."""

from typing import Literal

from ninja import Schema

from api.files.models import StoredFile
from api.http.listing import Listing


class FileObject(Schema):
    """A file, without its content."""

    id: str
    object: Literal["file"] = "file"
    bytes: int
    created_at: int
    expires_at: int
    filename: str
    purpose: str
    status: Literal["processed"] = "processed"


class FileList(Listing):
    """A page of files."""

    data: list[FileObject]


class DeletedFile(Schema):
    """What is left of a deleted file."""

    id: str
    object: Literal["file"] = "file"
    deleted: bool = True


def file_object(file: StoredFile) -> FileObject:
    """A row as clients see it."""
    return FileObject(
        id=file.public_id,
        bytes=file.size,
        created_at=int(file.created.timestamp()),
        expires_at=int(file.expires.timestamp()),
        filename=file.filename,
        purpose=file.purpose,
    )
