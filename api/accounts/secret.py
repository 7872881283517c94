"""Random secrets and their digests. With 256 random bits, a plain fast digest is enough."""

import hashlib
import hmac
import secrets


def make() -> str:
    """A new secret, safe in URLs and headers."""
    return secrets.token_urlsafe(32)


def digest(secret: str) -> str:
    """What is stored in place of the secret."""
    return hashlib.sha256(secret.encode("utf-8", "surrogateescape")).hexdigest()


def same(left: str, right: str) -> bool:
    """Compares two digests in constant time."""
    return hmac.compare_digest(left, right)
