"""The largest message: both kinds of session refuse the same ones before anything is sent.

A broker closes the channel or the connection over a larger one, which fails every other publish
under way.
"""

from collections.abc import Mapping

from broker.errors import Unsendable
from topology.names import BadName, check_amqp_name

MAX_BODY_BYTES = 16 * 1024 * 1024  # RabbitMQ 4's default `max_message_size`; RabbitMQ 3 takes more
MAX_HEADER_BYTES = 100_000  # all headers go in one frame, of at most 131,072 bytes
INT_LIMIT = 2**63


def check_sendable(
    exchange: str, key: str, body: bytes, headers: Mapping[str, object] | None
) -> None:
    """Raises Unsendable if AMQP, or pika, cannot carry such a message."""
    try:
        check_amqp_name(exchange)
        check_amqp_name(key)
        header_bytes = _field_bytes(headers) if headers else 0
    except (BadName, ValueError) as error:
        raise Unsendable(str(error)) from error
    if header_bytes > MAX_HEADER_BYTES:
        raise Unsendable(
            f"the headers take {header_bytes} bytes, and at most {MAX_HEADER_BYTES} are allowed"
        )
    if len(body) > MAX_BODY_BYTES:
        raise Unsendable(
            f"the body has {len(body)} bytes, and at most {MAX_BODY_BYTES} are allowed"
        )


def _field_bytes(value: object) -> int:
    """Rough size of a header's value on the wire. Raises ValueError if AMQP has no such type."""
    if value is None or isinstance(value, bool):
        return 2
    if isinstance(value, int) and -INT_LIMIT <= value < INT_LIMIT:
        return 9
    if isinstance(value, str):
        return 5 + len(value.encode())
    if isinstance(value, list):
        return 5 + sum(_field_bytes(item) for item in value)
    if isinstance(value, Mapping):
        total = 5
        for name, item in value.items():
            total += 1 + len(check_amqp_name(name)) + _field_bytes(item)
        return total
    raise ValueError(f"AMQP has no type for the header {str(value)[:60]!r}")
