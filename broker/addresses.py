"""CANOPY_AMQP_URL: one address, or those of a cluster's brokers, separated by commas."""

from urllib.parse import urlsplit

from broker.session import BrokerError

_SHAPE = "amqp://USER:PASSWORD@HOST:PORT/VHOST"


def addresses(urls: str) -> list[str]:
    """The addresses in `urls`, each once. A comma inside a password is written %2C.

    Raises BrokerError that says which one is malformed and why, without the password.
    """
    found = list(dict.fromkeys(each.strip() for each in urls.split(",") if each.strip()))
    if not found:
        raise BrokerError(
            f"the broker's address is empty; it is {_SHAPE}, or several of these separated by commas"
        )
    for number, url in enumerate(found, 1):
        if reason := _fault(url):
            raise BrokerError(f"broker address {number} of {len(found)} {reason}; it is {_SHAPE}")
    return found


def _fault(url: str) -> str | None:
    try:
        parts = urlsplit(url)
        port = parts.port
    except ValueError:  # its text may hold what was taken for the port: the end of a password
        return "has a malformed host or port"
    if parts.scheme not in ("amqp", "amqps"):
        return "does not begin with amqp:// or amqps://"
    if not parts.hostname:
        return "names no host"
    return "has port 0" if port == 0 else None
