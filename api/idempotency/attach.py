"""The header Idempotency-Key: a retry attaches to the job that is queued, running or finished."""

import hashlib
from functools import partial

import msgspec
from django.http import HttpRequest

from api.accounts.auth import AuthRequest
from api.answers import following
from api.answers.record import Status
from api.errors import ApiError
from api.http.parsing import document
from api.idempotency import store
from api.idempotency.models import KeptRequest
from api.requests import origin
from broker.wire import Job

HEADER = "Idempotency-Key"
MAX_LENGTH = 255
_NOT_COMPARED = ("stream", "stream_options")  # a retry may read the same answer in another way
_TRIES = 3  # between the query and the insertion, another request may insert or delete the key


def key_of(request: HttpRequest) -> str | None:
    """The request's key; None without the header. Raises ApiError 400 for an unusable one."""
    key = request.META.get("HTTP_IDEMPOTENCY_KEY")
    if key is None:
        return None
    if not (0 < len(key) <= MAX_LENGTH and key.isascii() and key.isprintable()):
        message = f"{HEADER}: must be 1 to {MAX_LENGTH} printable ASCII characters"
        raise ApiError(400, message, field=HEADER, code="invalid_idempotency_key")
    return key


async def attach(request: AuthRequest, key: str, job: Job) -> tuple[KeptRequest, bool]:
    """The request stored under that key, and whether it was there before; else it starts `job`.

    A stored request that failed but may succeed later is started again.
    Raises ApiError 422 if the key was used for another request, or as `Submitter.submit` does.
    """
    [job] = origin.adopt([job])  # before it is stored
    fingerprint = fingerprint_of(request)
    for _ in range(_TRIES):
        stored = await store.find(request.auth, key)
        if stored is None:
            created = await store.create(request.auth, key, fingerprint, job)
            if created is not None:
                stored, seeded_job = created
                await following.begin(stored, seeded_job, undo=partial(store.remove, stored))
                return stored, False
        elif stored.fingerprint != fingerprint:
            raise _key_reused()
        elif stored.status == Status.FAILED and stored.retryable:
            await store.remove_failed(stored)
        else:
            return stored, True
    message = "other requests with this key are being made and removed; try again"
    raise ApiError(503, message, field=HEADER, code="unavailable")


def fingerprint_of(request: HttpRequest) -> str:
    """A digest of path and body, whatever the order of its fields and the way it is read."""
    body = document(request)
    content = {name: value for name, value in body.items() if name not in _NOT_COMPARED}
    plain = msgspec.json.encode([request.path_info, content], order="deterministic")
    return hashlib.sha256(plain).hexdigest()


def _key_reused() -> ApiError:
    message = f"this {HEADER} was used for another request; take a new key for a new request"
    return ApiError(422, message, field=HEADER, code="idempotency_key_reused")
