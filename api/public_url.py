"""CANOPY_URL, under which users reach the service, and origins as browsers write them."""

import re
from ipaddress import IPv6Address
from urllib.parse import SplitResult, urlsplit

# How the addresses of urls.py begin: a base path of that name would make them ambiguous, since a
# proxy may pass the base path on or take it off.
OWN_SEGMENTS = frozenset(
    [
        "admin",
        "api",
        "arranca",
        "broker",
        "c",
        "connect",
        "detokenize",
        "health",
        "healthz",
        "login",
        "metrics",
        "oidc",
        "readyz",
        "rerank",
        "s",
        "score",
        "settings",
        "share",
        "static",
        "sw.js",
        "tokenize",
        "tree",
        "v1",
        "v2",
        "welcome",
    ]
)
_BASE_PATH = re.compile(r"(/[A-Za-z0-9][A-Za-z0-9._~-]*)+")
_LONGEST_PATH = 200  # characters
_LABEL = r"[a-z0-9_]([a-z0-9_-]*[a-z0-9_])?"
_HOST = re.compile(rf"{_LABEL}(\.{_LABEL})*")
_LONGEST_HOST = 253  # characters


def parse(text: str) -> tuple[str, str]:
    """Its origin, and its path without a slash at the end ("" at the root).

    Raises ValueError, which says what CANOPY_URL must be.
    """
    origin, path = _split(text)
    if origin is None or (path and not _BASE_PATH.fullmatch(path)) or len(path) > _LONGEST_PATH:
        raise ValueError(
            "must be like https://chat.example.org:8443 or "
            f"https://example.org/canopy, not {text[:200]!r}"
        )
    first = path.lstrip("/").partition("/")[0]
    if first in OWN_SEGMENTS:
        raise ValueError(
            f"must not lie below /{first}/, since Canopy's own addresses begin so: "
            "choose another path, such as /canopy"
        )
    return origin, path


def _split(text: str) -> tuple[str | None, str]:
    try:
        parts = urlsplit(text)
    except ValueError:
        return None, ""
    return origin_of(parts._replace(path="").geturl()), parts.path.rstrip("/")


def origin_of(text: str) -> str | None:
    """Scheme, host and port as browsers write an origin; None if `text` is anything else."""
    try:
        parts = urlsplit(text)
        port = parts.port
    except ValueError:
        return None
    host = _host(parts.hostname or "")
    if parts.scheme not in ("http", "https") or host is None or port == 0 or not _is_bare(parts):
        return None
    origin = f"{parts.scheme}://{bracketed(host)}"
    if port in (None, {"http": 80, "https": 443}[parts.scheme]):
        return origin
    return f"{origin}:{port}"


def _host(name: str) -> str | None:
    """As browsers send it; None if it is no host: Django would take * and .example as patterns."""
    try:
        if ":" in name and "%" not in name:
            return str(IPv6Address(name))
        ascii_name = name.encode("idna").decode()
    except ValueError:
        return None
    if len(ascii_name) > _LONGEST_HOST or not _HOST.fullmatch(ascii_name):
        return None
    return ascii_name


def bracketed(host: str) -> str:
    """An IPv6 address in brackets, as URLs have it; any other host unchanged."""
    return f"[{host}]" if ":" in host else host


def _is_bare(parts: SplitResult) -> bool:
    return parts.path in ("", "/") and not (parts.query or parts.fragment or "@" in parts.netloc)
