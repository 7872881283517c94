"""What /v1/batches takes and answers, as OpenAI's clients know it."""

import re
from datetime import timedelta
from typing import Annotated, Any, Literal

from ninja import Schema
from pydantic import Field, field_validator
from pydantic_core import PydanticCustomError

from api.batches.models import Batch
from api.files.models import PREFIX as FILE_PREFIX
from api.http.listing import Listing
from api.http.parsing import Body, Integer, StorableText

ENDPOINTS = ("/v1/chat/completions", "/v1/completions", "/v1/embeddings", "/v1/responses")
BatchEndpoint = Literal[
    "/v1/chat/completions", "/v1/completions", "/v1/embeddings", "/v1/responses"
]
MOST_METADATA = 16
_WINDOW = re.compile(r"([1-9][0-9]{0,2})([hd])", re.ASCII)
_LONGEST_WINDOW = timedelta(days=14)

MetadataKey = Annotated[StorableText, Field(max_length=64)]
MetadataValue = Annotated[StorableText, Field(max_length=512)]
Metadata = Annotated[dict[MetadataKey, MetadataValue], Field(max_length=MOST_METADATA)]


def window(text: str) -> timedelta | None:
    """A completion window such as 24h or 7d; None for anything else."""
    match = _WINDOW.fullmatch(text)
    if match is None:
        return None
    length = timedelta(**{"hours" if match[2] == "h" else "days": int(match[1])})
    return length if length <= _LONGEST_WINDOW else None


class OutputExpiry(Body):
    """When a batch's files expire."""

    anchor: Literal["created_at"]
    seconds: Annotated[Integer, Field(ge=3600, le=2_592_000)]


class NewBatch(Body):
    """A batch to be made."""

    input_file_id: Annotated[str, Field(max_length=100)]
    endpoint: BatchEndpoint
    completion_window: Annotated[str, Field(max_length=8)] = Field(
        description="OpenAI's 24h, or hours (6h) or days (7d) up to 14 days"
    )
    metadata: Metadata | None = None
    output_expires_after: OutputExpiry | None = None

    @field_validator("completion_window")
    @classmethod
    def _is_a_window(cls, text: str) -> str:
        if window(text) is None:
            raise PydanticCustomError("window", "must be like 24h or 7d, at most 14 days")
        return text


class RequestCounts(Schema):
    """Lines of a batch."""

    total: int
    completed: int
    failed: int


class BatchObject(Schema):
    """A batch as its user sees it."""

    id: str
    object: Literal["batch"] = "batch"
    endpoint: str
    model: str | None
    errors: Any = None
    input_file_id: str
    completion_window: str
    status: str
    output_file_id: str | None
    error_file_id: str | None
    created_at: int
    in_progress_at: int | None = None
    expires_at: int
    finalizing_at: int | None = None
    completed_at: int | None = None
    failed_at: int | None = None
    expired_at: int | None = None
    cancelling_at: int | None = None
    cancelled_at: int | None = None
    request_counts: RequestCounts
    metadata: dict[str, str] | None


class BatchList(Listing):
    """A page of batches."""

    data: list[BatchObject]


def batch_object(batch: Batch) -> BatchObject:
    """A row as clients see it."""
    return BatchObject(
        id=batch.public_id,
        endpoint=batch.endpoint,
        model=batch.model or None,
        errors=batch.errors,
        input_file_id=FILE_PREFIX + batch.input_content,
        completion_window=batch.window,
        status=batch.status,
        output_file_id=_file_id(batch.output_content),
        error_file_id=_file_id(batch.error_content),
        created_at=int(batch.created.timestamp()),
        expires_at=int(batch.expires.timestamp()),
        request_counts=RequestCounts(
            total=batch.total, completed=batch.completed, failed=batch.failed
        ),
        metadata=batch.metadata,
        **batch.moments,
    )


def _file_id(content: str) -> str | None:
    return FILE_PREFIX + content if content else None
