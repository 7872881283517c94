"""Messages to JSON bytes and back: one `encode` and one `decode` for all of them.

Unknown fields are ignored, so that an older process understands a newer one. Missing or mistyped
ones raise DecodeError; the consumer makes the message a dead letter, with the reason.
"""

from functools import cache
from types import UnionType
from typing import Any, TypeVar, overload

import msgspec

from broker.errors import DecodeError
from broker.wire import Job, Wire

T = TypeVar("T")
_encoder = msgspec.json.Encoder()


def encode(message: Wire) -> bytes:
    """The message as JSON bytes.

    Half of a surrogate pair, which UTF-8 cannot carry, becomes U+FFFD: text may come from anywhere,
    and a frame that cannot be encoded would hold up the others of its message.
    """
    try:
        return _encoder.encode(message)
    except UnicodeEncodeError:
        return _encoder.encode(_without_surrogates(msgspec.to_builtins(message)))


def encode_copy(job: Job) -> bytes:
    """The same for a job that is kept.

    CPython caches the UTF-8 of a string inside it, which would double the memory of the kept job.
    So copies of the job's texts are encoded, and dropped with their caches.
    """
    messages = job.messages
    if messages is not None:
        messages = tuple(
            msgspec.structs.replace(message, content=_copy(message.content)) for message in messages
        )
    prompt = job.prompt
    if prompt is not None:
        prompt = _copy(prompt)
    pooling = job.pooling
    if pooling is not None:
        inputs = tuple(_copy(text) if isinstance(text, str) else text for text in pooling.inputs)
        pooling = msgspec.structs.replace(pooling, inputs=inputs)
    return encode(msgspec.structs.replace(job, messages=messages, prompt=prompt, pooling=pooling))


def _copy(text: str) -> str:
    """ASCII text is its own UTF-8, so it has no cache."""
    if text.isascii():
        return text
    return text[:1] + text[1:]


def _without_surrogates(value: Any) -> Any:
    if isinstance(value, str):
        return value.encode("utf-16", "surrogatepass").decode("utf-16", "replace")
    if isinstance(value, list | tuple):
        return [_without_surrogates(item) for item in value]
    if isinstance(value, dict):
        return {_without_surrogates(key): _without_surrogates(item) for key, item in value.items()}
    return value


@cache
def _decoder(kind: Any) -> msgspec.json.Decoder[Any]:
    return msgspec.json.Decoder(kind)


@overload
def decode(body: bytes, kind: type[T]) -> T: ...
@overload
def decode(body: bytes, kind: UnionType) -> Any: ...
def decode(body: bytes, kind: Any) -> Any:
    """Parses `body` as `kind`: a message's class, or a union of several with tags.

    Raises DecodeError if they are not JSON or UTF-8, or if a field is missing, mistyped or out of
    bounds.
    """
    try:
        return _decoder(kind).decode(body)
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise DecodeError(str(error)) from error
    except RecursionError as error:  # in unknown fields, too
        raise DecodeError("nested too deeply") from error
