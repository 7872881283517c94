"""The headers of a webhook, by the Standard Webhooks specification.

Twenty lines of HMAC: the reference library brings five packages for them. The tests verify what is
made here with OpenAI's client.
"""

import base64
import binascii
import hashlib
import hmac
import secrets

PREFIX = "whsec_"
LEAST_BYTES, MOST_BYTES = 16, 128


def new_secret() -> str:
    """A fresh secret."""
    return PREFIX + base64.b64encode(secrets.token_bytes(32)).decode()


def key_of(secret: str) -> bytes:
    """The key that a secret stands for. Raises ValueError if it cannot be used."""
    if "\x00" in secret:
        raise ValueError("must not contain U+0000")
    if secret.startswith(PREFIX):
        try:
            key = base64.b64decode(secret.removeprefix(PREFIX), validate=True)
        except binascii.Error as error:
            raise ValueError(f"after {PREFIX} must come base64") from error
    else:
        key = secret.encode()
    if not LEAST_BYTES <= len(key) <= MOST_BYTES:
        raise ValueError(f"must stand for {LEAST_BYTES} to {MOST_BYTES} bytes")
    return key


def headers(secret: str, message: str, timestamp: int, body: bytes) -> list[tuple[str, str]]:
    """`message`: its id, the same for each try."""
    signed = b"%b.%d.%b" % (message.encode(), timestamp, body)
    digest = hmac.new(key_of(secret), signed, hashlib.sha256).digest()
    return [
        ("webhook-id", message),
        ("webhook-timestamp", str(timestamp)),
        ("webhook-signature", f"v1,{base64.b64encode(digest).decode()}"),
    ]
