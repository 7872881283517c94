"""An encrypted message to one browser: RFC 8291 (encryption) and RFC 8292 (VAPID)."""

import base64
import json
import os
import time
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import urlsplit

import http_ece  # type: ignore[import-untyped]
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec
from py_vapid import Vapid02  # type: ignore[import-untyped]

KEPT_SECONDS = 3600  # how long a push service keeps a message for a browser that is away
_CLAIM_SECONDS = 12 * 3600  # RFC 8292 allows 24 hours
_SALT_BYTES = 16


@dataclass(frozen=True, slots=True)
class Target:
    """Where a message goes, and the browser's keys in base64url."""

    endpoint: str
    p256dh: str
    auth: str


class Sender:
    """Signs as this service. `contact`: whom a push service may write to (mailto: or https:)."""

    def __init__(self, key_file: Path, contact: str) -> None:
        self._vapid = _load_or_create(key_file)
        self._contact = contact

    @property
    def public_key(self) -> str:
        """The key that browsers subscribe with, in base64url."""
        return _encode(_point(self._vapid.public_key))

    def request(self, target: Target, content: dict[str, str]) -> tuple[bytes, dict[str, str]]:
        """Body and headers of the POST to the target's endpoint. Raises ValueError: bad keys."""
        parts = urlsplit(target.endpoint)
        claims = {
            "sub": self._contact,
            "aud": f"{parts.scheme}://{parts.netloc}",
            "exp": int(time.time()) + _CLAIM_SECONDS,
        }
        headers = {
            "Content-Encoding": "aes128gcm",
            "Content-Type": "application/octet-stream",
            "TTL": str(KEPT_SECONDS),
            **self._vapid.sign(claims),
        }
        return encrypted(target, json.dumps(content).encode()), headers


def encrypted(target: Target, content: bytes) -> bytes:
    """The content for that browser alone. Raises ValueError if its keys are none."""
    try:
        body: bytes = http_ece.encrypt(
            content,
            salt=os.urandom(_SALT_BYTES),
            private_key=ec.generate_private_key(ec.SECP256R1()),
            dh=decode(target.p256dh),
            auth_secret=decode(target.auth),
            version="aes128gcm",
        )
    except http_ece.ECEException as error:  # else one browser's keys would end the notifier
        raise ValueError(str(error)) from error
    return body


def decode(text: str) -> bytes:
    """Base64url without padding. Raises ValueError."""
    return base64.b64decode(text + "=" * (-len(text) % 4), altchars=b"-_", validate=True)


def is_public_key(text: str) -> bool:
    """Whether this is an uncompressed point of P-256, in base64url."""
    try:
        ec.EllipticCurvePublicKey.from_encoded_point(ec.SECP256R1(), decode(text))
    except ValueError:
        return False
    return True


def _encode(content: bytes) -> str:
    return base64.urlsafe_b64encode(content).rstrip(b"=").decode()


def _point(key: ec.EllipticCurvePublicKey) -> bytes:
    return key.public_bytes(
        serialization.Encoding.X962, serialization.PublicFormat.UncompressedPoint
    )


def _load_or_create(file: Path) -> Vapid02:
    """The service's key pair, created on first use and readable by the owner alone.

    Several processes may start at once: the first one's key counts.
    """
    if not file.exists():
        vapid = Vapid02()
        vapid.generate_keys()
        draft = file.with_name(f"{file.name}.{os.getpid()}")
        handle = os.open(draft, os.O_CREAT | os.O_TRUNC | os.O_WRONLY, 0o600)
        with os.fdopen(handle, "wb") as opened:
            opened.write(vapid.private_pem())
        try:
            os.link(draft, file)
        except FileExistsError:
            pass
        finally:
            draft.unlink()
    return Vapid02.from_pem(file.read_bytes())
