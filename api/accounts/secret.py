"""Random secrets and their digests. They have 256 bits, so that a plain fast digest is enough."""

import hashlib
import hmac
import secrets


def make() -> str:
    """A fresh secret, safe in URLs and headers."""
    return secrets.token_urlsafe(32)


def digest(secret: str) -> str:
    """What is stored in its place."""
    return hashlib.sha256(secret.encode("utf-8", "surrogateescape")).hexdigest()


def same(left: str, right: str) -> bool:
    """Compares two digests in constant time."""
    return hmac.compare_digest(left, right)
