"""CANOPY_AMQP_URL: one address, or those of a cluster's brokers, separated by commas."""

from urllib.parse import urlsplit

from broker.errors import BadAddress

_SHAPE = "amqp://USER:PASSWORD@HOST:PORT/VHOST"


def addresses(urls: str) -> list[str]:
    """The addresses in `urls`, without repeats. A comma inside a password is written %2C.

    Raises BadAddress that says which one is malformed and why, without the password.
    """
    unique: list[str] = []
    for part in urls.split(","):
        url = part.strip()
        if url and url not in unique:
            unique.append(url)
    if not unique:
        raise BadAddress(
            f"the broker's address is empty; it is {_SHAPE}, or several, separated by commas"
        )
    for number, url in enumerate(unique, 1):
        reason = _fault(url)
        if reason is not None:
            raise BadAddress(f"broker address {number} of {len(unique)} {reason}; it is {_SHAPE}")
    return unique


def _fault(url: str) -> str | None:
    try:
        parts = urlsplit(url)
        port = parts.port
    except ValueError:  # its text may contain the end of a password, taken for the port
        return "has a malformed host or port"
    if parts.scheme not in ("amqp", "amqps"):
        return "does not begin with amqp:// or amqps://"
    if not parts.hostname:
        return "names no host"
    if port == 0:
        return "has port 0"
    return None
