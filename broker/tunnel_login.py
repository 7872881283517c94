"""Holds who has a tunnel to the user whom the broker was asked about.

To the broker, whoever comes through a tunnel comes from the pages' own machine: users whom it lets
in from there alone, such as `guest`, would be open to everybody.
"""

import struct

import pika.exceptions
import pika.frame
import pika.spec

from broker.errors import AccessRefused

_HEADER = b"AMQP\x00\x00\x09\x01"  # 0-9-1: other versions log in by other messages
_LONGEST = 64 * 1024  # bytes that wait here for the rest of a login


class OpeningLogin:
    """What a client says until it has logged in; the rest passes."""

    def __init__(self, user: str) -> None:
        self._user = user
        self._waiting = bytearray()
        self._header_passed = False
        self._logged_in = False

    def pass_on(self, data: bytes) -> bytes:
        """What the broker may be told now. Raises AccessRefused."""
        if self._logged_in:
            return data
        self._waiting += data
        passed = b""
        if not self._header_passed:
            if len(self._waiting) < len(_HEADER):
                return b""
            passed = self._take(len(_HEADER))
            if passed != _HEADER:
                raise AccessRefused("no client of AMQP 0-9-1")
            self._header_passed = True
        return passed + self._login()

    def _login(self) -> bytes:
        """The first frame, once it is complete, and what follows it; else nothing."""
        try:
            size, frame = pika.frame.decode_frame(bytes(self._waiting))
        except (pika.exceptions.AMQPError, struct.error, LookupError, ValueError) as error:
            raise AccessRefused("the login cannot be read") from error
        if frame is None:
            if len(self._waiting) > _LONGEST:
                raise AccessRefused("the login is too long")
            return b""
        if size == 0 or user_of(frame) != self._user:
            raise AccessRefused("the login is another user's than the tunnel's")
        self._logged_in = True
        return self._take(len(self._waiting))

    def _take(self, count: int) -> bytes:
        taken = bytes(self._waiting[:count])
        del self._waiting[:count]
        return taken


def user_of(frame: object) -> str | None:
    """Who logs in, as RabbitMQ reads it; None for any other frame or another kind of login."""
    if not isinstance(frame, pika.frame.Method):
        return None
    method = frame.method
    if not isinstance(method, pika.spec.Connection.StartOk) or method.mechanism != "PLAIN":
        return None
    response: object = method.response  # the stubs call it a str
    parts = response.split(b"\x00") if isinstance(response, bytes) else []
    if len(parts) != 3 or parts[0]:
        return None
    return parts[1].decode(errors="replace")
