"""What can be saved of messages that do not decode; messages that contradict themselves."""

from typing import TypeVar

import msgspec

from broker.bounds import Name
from broker.encoding import decode
from broker.errors import DecodeError
from broker.wire import AnyFrame, Capacity, Frames

T = TypeVar("T")


class Address(msgspec.Struct, frozen=True, kw_only=True):
    """Where to send the refusal of a job that does not decode."""

    request_id: Name
    reply_to: Name


class _Sender(msgspec.Struct, frozen=True, kw_only=True):
    node: Name


class _RawFrames(msgspec.Struct, frozen=True, kw_only=True):
    frames: tuple[msgspec.Raw, ...]


def decode_frames(body: bytes) -> tuple[list[AnyFrame], list[str]]:
    """The frames of a Frames message, and why the others of it were dropped.

    A frame that does not decode must not take frames of other requests with it.
    """
    try:
        return list(decode(body, Frames).frames), []
    except DecodeError as error:
        raw = _parse(body, _RawFrames)
        if raw is None:
            return [], [str(error)]
    frames: list[AnyFrame] = []
    reasons: list[str] = []
    for raw_frame in raw.frames:
        try:
            frames.append(msgspec.json.decode(raw_frame, type=AnyFrame))
        except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
            reasons.append(str(error))
    return frames, reasons


def address_of(body: bytes) -> Address | None:
    """Where the answer to a job that does not decode goes; None if that does not decode either."""
    return _parse(body, Address)


def sender_of(body: bytes) -> str:
    """The sender of a control message that does not decode; empty if it names none."""
    sender = _parse(body, _Sender)
    return sender.node if sender else ""


def inconsistency(capacity: Capacity) -> str:
    """Why these counters, each possible by itself, cannot be true together; empty if they can."""
    if capacity.free > capacity.slots:
        return f"it reports {capacity.free} free of {capacity.slots} slots"
    return ""


def _parse(body: bytes, kind: type[T]) -> T | None:
    try:
        return msgspec.json.decode(body, type=kind)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        return None
