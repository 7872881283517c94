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
from broker.wire import Job

HEADER = "Idempotency-Key"
MAX_LENGTH = 255
_HOW_IT_IS_TOLD = ("stream", "stream_options")  # a retry may read the same answer in another way
_TRIES = 3  # between looking for a key and storing it, another request may do either


def key_of(request: HttpRequest) -> str | None:
    """The request's key; None without the header. Raises ApiError 400 for one that is not to be used."""
    key = request.META.get("HTTP_IDEMPOTENCY_KEY")
    if key is not None and not (0 < len(key) <= MAX_LENGTH and key.isascii() and key.isprintable()):
        message = f"{HEADER}: must be 1 to {MAX_LENGTH} printable ASCII characters"
        raise ApiError(400, message, field=HEADER, code="invalid_idempotency_key")
    return key


async def attach(request: AuthRequest, key: str, job: Job) -> tuple[KeptRequest, bool]:
    """The kept request of that key, and whether it was there before; if not, it begins with `job`.

    Raises ApiError 422 if the key stands for another request, or as `submit` does. A request that failed
    but may succeed later begins anew.
    """
    fingerprint = fingerprint_of(request)
    for _ in range(_TRIES):
        found = await store.find(request.auth, key)
        if found is None:
            if made := await store.create(request.auth, key, fingerprint, job):
                kept, seeded = made
                await following.begin(kept, seeded, undo=partial(store.remove, kept))
                return kept, False
        elif found.fingerprint != fingerprint:
            message = (
                f"this {HEADER} was used for another request; take a new key for a new request"
            )
            raise ApiError(422, message, field=HEADER, code="idempotency_key_reused")
        elif found.status == Status.FAILED and found.retryable:
            await store.remove_failed(found)
        else:
            return found, True
    raise ApiError(
        503, "requests with this key come and go; try again", field=HEADER, code="unavailable"
    )


def fingerprint_of(request: HttpRequest) -> str:
    """What is asked, whatever the order of its fields and the way the answer is read."""
    asked = document(request)
    content = {name: value for name, value in asked.items() if name not in _HOW_IT_IS_TOLD}
    plain = msgspec.json.encode([request.path, content], order="deterministic")
    return hashlib.sha256(plain).hexdigest()
