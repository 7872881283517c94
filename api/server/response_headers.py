"""Headers of every response: security, CORS, TLS."""

from collections.abc import Sequence
from ipaddress import IPv4Network, IPv6Network, ip_address
from typing import Any
from urllib.parse import urlsplit

from api.environment import ANY_ORIGIN
from api.server.base_path import Scope, app_path
from api.server.limits import is_within

Headers = list[tuple[bytes, bytes]]
Fields = dict[bytes, bytes]  # by lower-case name

SECURITY: Headers = [
    (
        b"content-security-policy",
        b"default-src 'self'; style-src 'self' 'unsafe-inline'; img-src 'self' data:; "
        b"frame-ancestors 'none'; base-uri 'self'; form-action 'self'",
    ),
    (b"x-content-type-options", b"nosniff"),
    (b"x-frame-options", b"DENY"),
    (b"referrer-policy", b"same-origin"),
    (b"cross-origin-opener-policy", b"same-origin"),
]
HSTS = (b"strict-transport-security", b"max-age=31536000")
_PREFLIGHT_SECONDS = b"600"
_METHODS = b"GET, POST, DELETE, OPTIONS"
_EXPOSED = (
    b"access-control-expose-headers",
    b"X-Request-Id, Request-Id, X-Client-Request-Id, X-Canopy-Waited, X-Canopy-Queue, "
    b"X-Canopy-Trail, Idempotent-Replay, Retry-After, "
    b"X-Ratelimit-Limit-Requests, X-Ratelimit-Remaining-Requests, X-Ratelimit-Reset-Requests, "
    b"X-Ratelimit-Limit-Tokens, X-Ratelimit-Remaining-Tokens, X-Ratelimit-Reset-Tokens, "
    b"Anthropic-Ratelimit-Requests-Limit, Anthropic-Ratelimit-Requests-Remaining, "
    b"Anthropic-Ratelimit-Requests-Reset, Anthropic-Ratelimit-Tokens-Limit, "
    b"Anthropic-Ratelimit-Tokens-Remaining, Anthropic-Ratelimit-Tokens-Reset",
)
_ANY_PAGE: Headers = [(b"access-control-allow-origin", b"*"), _EXPOSED]
_VARY_ORIGIN = (b"vary", b"Origin")
_HEADER_LIST = frozenset(b"abcdefghijklmnopqrstuvwxyz0123456789-_, ")
_MOST_HEADERS = 2048  # bytes of a preflight's list


def by_name(headers: Sequence[tuple[bytes, bytes]]) -> Fields:
    """Headers by lower-case name; of several of one name, the last."""
    return {name.lower(): value for name, value in headers}


def with_defaults(headers: Headers, present: Fields, secure: bool) -> Headers:
    """A response's headers, and those of SECURITY that it does not set itself.

    `present`: its headers by name; `secure`: it is sent through TLS.
    """
    complete = headers + [field for field in SECURITY if field[0] not in present]
    if secure:
        complete = [_secure_cookie(name, value) for name, value in complete]
        complete.append(HSTS)
    return complete


def _secure_cookie(name: bytes, value: bytes) -> tuple[bytes, bytes]:
    if name.lower() != b"set-cookie":
        return name, value
    attributes = [attribute.strip().lower() for attribute in value.split(b";")[1:]]
    if b"secure" in attributes:
        return name, value
    return name, value + b"; Secure"


class Transport:
    """Whether a request came through TLS, which ends at a proxy in front of this server.

    `public_url`: the address under which users reach the service; `proxies`: networks whose
    X-Forwarded-Proto is believed.
    """

    def __init__(
        self, public_url: str | None, proxies: Sequence[IPv4Network | IPv6Network]
    ) -> None:
        self._proxies = proxies
        self._tls_host: bytes | None = None
        if public_url and public_url.startswith("https://"):
            self._tls_host = urlsplit(public_url).netloc.encode()

    def is_secure(self, scope: Scope, request: Fields) -> bool:
        """Whether the client uses TLS. `request`: the request's headers."""
        if self._tls_host is not None and request.get(b"host", b"").lower() == self._tls_host:
            return True
        if request.get(b"x-forwarded-proto", b"").partition(b",")[0].strip().lower() != b"https":
            return False
        client = scope.get("client")
        return client is not None and is_within(client[0], self._proxies)


def client_of(scope: Scope, request: Fields, proxies: Sequence[IPv4Network | IPv6Network]) -> Any:
    """The client's address and port: behind `proxies`, the last address that is none of theirs.

    Each proxy appends the address of whoever connected to it; what stands before may be invented.
    """
    client = scope.get("client")
    forwarded = request.get(b"x-forwarded-for")
    if client is None or forwarded is None or not is_within(client[0], proxies):
        return client
    for entry in reversed(forwarded[-_MOST_HEADERS:].decode("latin-1").split(",")):
        address = entry.strip()
        if not _is_address(address):
            return client
        client = (address, 0)
        if not is_within(address, proxies):
            return client
    return client


def _is_address(text: str) -> bool:
    try:
        ip_address(text)
    except ValueError:
        return False
    return True


class Cors:
    """Which pages of other servers may use /v1/. Cookies are never allowed: a key is needed."""

    def __init__(self, origins: Sequence[str]) -> None:
        self._any = ANY_ORIGIN in origins
        self._origins = frozenset(origin.encode() for origin in origins)

    def headers(self, path: str, request: Fields) -> Headers:
        """The headers of a response to a request with these headers."""
        if not self._origins or not _is_open(path):
            return []
        if self._any:
            return _ANY_PAGE
        origin = request.get(b"origin")
        if origin is None or origin not in self._origins:
            return [_VARY_ORIGIN]
        return [(b"access-control-allow-origin", origin), _EXPOSED, _VARY_ORIGIN]

    def preflight(self, scope: Scope, request: Fields) -> Headers | None:
        """The headers of the response to a CORS preflight; None for any other request."""
        if scope["method"] != "OPTIONS" or b"access-control-request-method" not in request:
            return None
        if not self._origins or not _is_open(app_path(scope)):
            return None
        names = request.get(b"access-control-request-headers", b"")[:_MOST_HEADERS]
        allowed = names if _HEADER_LIST.issuperset(names.lower()) else b""
        return [
            (b"access-control-allow-methods", _METHODS),
            (b"access-control-allow-headers", allowed or b"authorization, content-type"),
            (b"access-control-max-age", _PREFLIGHT_SECONDS),
            (b"content-length", b"0"),
        ]


def _is_open(path: str) -> bool:
    return path.startswith("/v1/") or path == "/v1"
