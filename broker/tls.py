"""TLS to the broker: with a pinned certificate, else checked by this machine's authorities."""

import hashlib
import hmac
import ssl

_KIND = "sha256:"
_DIGEST_BYTES = 32


class WrongCertificate(ssl.SSLError):
    """The server's certificate is not the pinned one."""


def fingerprint_of(certificate: bytes) -> str:
    """`sha256:HEX` of a certificate (DER), as it stands in a broker's address."""
    return _KIND + hashlib.sha256(certificate).hexdigest()


def parse_fingerprint(text: str) -> bytes:
    """The digest in `sha256:HEX`; openssl's colons between the bytes do no harm.

    Raises ValueError.
    """
    kind, _, digits = text.partition(":")
    digest = bytes.fromhex(digits.replace(":", ""))
    if f"{kind.lower()}:" != _KIND or len(digest) != _DIGEST_BYTES:
        raise ValueError("not a SHA-256 fingerprint")
    return digest


def client_context(fingerprint: bytes | None) -> ssl.SSLContext:
    """For connections to a server that has the pinned certificate, whatever its name and dates.

    None: its certificate must be valid for its name, by an authority that this machine trusts.
    """
    if fingerprint is None:
        return ssl.create_default_context()
    return _PinningContext(fingerprint)


class _PinningContext(ssl.SSLContext):
    """The sockets that it makes compare certificates at the end of the handshake, so before
    anything, such as a password, is sent.
    """

    pinned: bytes

    def __new__(cls, fingerprint: bytes) -> "_PinningContext":
        context = super().__new__(cls, ssl.PROTOCOL_TLS_CLIENT)
        context.pinned = fingerprint
        return context

    def __init__(self, fingerprint: bytes) -> None:
        self.minimum_version = ssl.TLSVersion.TLSv1_2
        self.check_hostname = False
        self.verify_mode = ssl.CERT_NONE  # the comparison is stricter
        self.sslsocket_class = _PinningSocket
        self.sslobject_class = _PinningObject

    def check(self, certificate: bytes | None) -> None:
        """Raises WrongCertificate."""
        digest = hashlib.sha256(certificate or b"").digest()
        if not hmac.compare_digest(digest, self.pinned):
            raise WrongCertificate(f"{_KIND}{digest.hex()}")


class _PinningSocket(ssl.SSLSocket):
    """What pika uses."""

    def do_handshake(self, block: bool = False) -> None:
        super().do_handshake(block)
        _check(self.context, self.getpeercert(binary_form=True))


class _PinningObject(ssl.SSLObject):
    """What asyncio uses."""

    def do_handshake(self) -> None:
        super().do_handshake()
        _check(self.context, self.getpeercert(binary_form=True))


def _check(context: ssl.SSLContext, certificate: bytes | None) -> None:
    assert isinstance(context, _PinningContext)  # noqa: S101 - it made the socket
    context.check(certificate)
