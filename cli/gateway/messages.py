"""The lines that a client sends, and those that the gateway adds to the API's own."""

from typing import Annotated, Any

import msgspec

MAX_LINE = 1_048_576  # bytes, as of a request's body
MAX_KEY = 500  # bytes of the first line
_ID = Annotated[str, msgspec.Meta(min_length=1, max_length=100)]
_FIRST_LINE = 'the first line must be the API key, or {"key": "…"}'
_encode = msgspec.json.encode


class BadLine(ValueError):
    """A line that the protocol does not have; the message tells the client what to send."""


class Key(msgspec.Struct, frozen=True):
    """The first line of a connection, if it is JSON: else it is the bare key."""

    key: str


class Question(msgspec.Struct, frozen=True, omit_defaults=True):
    """A text to answer. `id`: any name for it, repeated in its lines; needed to cancel it."""

    text: Annotated[str, msgspec.Meta(min_length=1)]
    timestamp: str | int | float
    id: _ID | None = None
    model: str | None = None
    max_tokens: int | None = None
    stream: bool = True  # False: only the last line, with the whole answer


class Cancel(msgspec.Struct, frozen=True):
    """Nobody wants the answer with that id any more."""

    cancel: _ID


def parse_key(line: bytes) -> str:
    """The API key in a connection's first line. Raises BadLine."""
    text = line.strip()
    if text.startswith(b"{"):
        try:
            text = msgspec.json.decode(text, type=Key).key.encode()
        except (msgspec.DecodeError, UnicodeError) as error:
            raise BadLine(
                f'the first line must be the API key, or {{"key": "…"}}: {error}'
            ) from None
    if not text or len(text) > MAX_KEY or not text.isascii() or b" " in text:
        raise BadLine('the first line must be the API key, or {"key": "…"}')
    return text.decode()


def parse(line: bytes) -> Question | Cancel:
    """What a later line asks for. Raises BadLine."""
    try:
        fields = msgspec.json.decode(line)
        if isinstance(fields, dict) and "cancel" in fields:
            return msgspec.convert(fields, Cancel)
        return msgspec.convert(fields, Question)
    except (msgspec.DecodeError, UnicodeError, RecursionError) as error:
        raise BadLine(
            f'a line must be {{"text": …, "timestamp": …}} or {{"cancel": id}}: {error}'
        ) from None


def body_of(question: Question) -> dict[str, Any]:
    """The body of the request to the API."""
    fields = {"text": question.text, "timestamp": question.timestamp, "stream": True}
    if question.model is not None:
        fields["model"] = question.model
    if question.max_tokens is not None:
        fields["max_tokens"] = question.max_tokens
    return fields


def ready(models: list[str]) -> bytes:
    """The key is good, and these models answer."""
    return _line({"kind": "ready", "models": models})


def error(code: str, message: str, id: str | None = None) -> bytes:
    """Why there is no answer, or no connection."""
    return _line(_named({"kind": "error", "code": code, "message": message}, id))


def cancelled(id: str) -> bytes:
    """The last line of an answer that the client cancelled."""
    return _line({"kind": "cancelled", "id": id})


def relayed(line: bytes, question: Question) -> bytes | None:
    """A line of the API's answer as the client gets it; None if it does not want that one."""
    if not line:
        return b"\n"
    frame: dict[str, Any] = msgspec.json.decode(line)
    if not question.stream and frame.get("kind") not in ("done", "error"):
        return None
    return _line(_named(frame, question.id))


def _named(frame: dict[str, Any], id: str | None) -> dict[str, Any]:
    return frame if id is None else {**frame, "id": id}


def _line(frame: dict[str, Any]) -> bytes:
    return _encode(frame) + b"\n"
