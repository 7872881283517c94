"""CANOPY_AMQP_URL: one address, or those of a cluster's brokers, separated by commas."""

from dataclasses import dataclass
from urllib.parse import SplitResult, parse_qsl, unquote, urlencode, urlsplit

from broker.errors import BadAddress
from broker.tls import parse_fingerprint
from topology import names
from topology.prefix import DEFAULT, Prefix, without_prefix

_SHAPE = "amqp://USER:PASSWORD@HOST:PORT/VHOST (amqps:// with TLS)"
_FINGERPRINT = "fingerprint"
_PORTS = {"amqp": 5672, "amqps": 5671, "http": 80, "https": 443}
_SECURE = ("amqps", "https")
_TUNNELS = ("http", "https")


@dataclass(frozen=True, slots=True)
class Address:
    """`url` is pika's, or leads to a tunnel (`broker.tunnel`); `fingerprint` the digest of the only
    certificate that the server may have, None for any that is valid for its name; `prefix`: of all
    names in the broker.
    """

    url: str
    fingerprint: bytes | None
    prefix: str = DEFAULT

    @property
    def secure(self) -> bool:
        """Whether TLS is spoken."""
        return urlsplit(self.url).scheme in _SECURE

    @property
    def tunnelled(self) -> bool:
        """Whether AMQP goes through the pages' web server."""
        return urlsplit(self.url).scheme in _TUNNELS

    @property
    def place(self) -> str:
        """Host and port, for people: an address has a password in it."""
        host = self.host
        if ":" in host:
            host = f"[{host}]"
        return f"{host}:{self.port}"

    @property
    def host(self) -> str:
        """A name, or an address without brackets."""
        return urlsplit(self.url).hostname or ""

    @property
    def port(self) -> int:
        """The one in the URL, or the scheme's own."""
        parts = urlsplit(self.url)
        return parts.port or _PORTS[parts.scheme]


def addresses(urls: str) -> list[Address]:
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
    parsed = []
    for number, url in enumerate(unique, 1):
        try:
            parsed.append(_parse(url))
        except ValueError as error:
            raise BadAddress(
                f"broker address {number} of {len(unique)} {error}; it is {_SHAPE}"
            ) from None  # whose text may contain the password
    return parsed


def joined_node(urls: str) -> str | None:
    """The node whose own user these addresses name; None for a user with more rights.

    Raises BadAddress.
    """
    address = addresses(urls)[0]
    user = unquote(urlsplit(address.url).username or "")
    return names.joined_node(Prefix(address.prefix).inside(user))


def _parse(url: str) -> Address:
    """Raises ValueError with the reason."""
    parts = _split(url)
    if parts.scheme not in _PORTS:
        raise ValueError("does not begin with amqp:// or amqps:// (or https://, for a tunnel)")
    if not parts.hostname:
        raise ValueError("names no host")
    prefix = Prefix.of(url).name
    url = without_prefix(url)
    fingerprints = [value for name, value in _options(url) if name == _FINGERPRINT]
    if not fingerprints:
        return Address(url, None, prefix)
    if parts.scheme not in _SECURE:
        raise ValueError("has a fingerprint, but no TLS: it must begin with amqps:// or https://")
    others = urlencode([option for option in _options(url) if option[0] != _FINGERPRINT])
    return Address(parts._replace(query=others).geturl(), _digest(fingerprints), prefix)


def _options(url: str) -> list[tuple[str, str]]:
    return parse_qsl(urlsplit(url).query, keep_blank_values=True)


def _split(url: str) -> SplitResult:
    try:
        parts = urlsplit(url)
        port = parts.port
    except ValueError:  # its text may contain the end of a password, taken for the port
        raise ValueError("has a malformed host or port") from None
    if port == 0:
        raise ValueError("has port 0")
    return parts


def _digest(fingerprints: list[str]) -> bytes:
    try:
        (fingerprint,) = fingerprints
        return parse_fingerprint(fingerprint)
    except ValueError:
        raise ValueError(
            "has a malformed fingerprint: sha256: and 64 hexadecimal digits, once"
        ) from None
