"""The certificate of the broker's TLS listener: one of our own, or the operator's."""

import contextlib
import datetime
import hashlib
import socket
import ssl
from dataclasses import dataclass
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec

from cli.errors import MachineError, UsageError
from cli.private_files import write_private

_FROM = datetime.datetime(2000, 1, 1, tzinfo=datetime.UTC)  # clocks of machines may be wrong
_NEVER_EXPIRES = datetime.datetime(9999, 12, 31, 23, 59, 59, tzinfo=datetime.UTC)  # RFC 5280


@dataclass(frozen=True, slots=True)
class Certificate:
    """Files in PEM. `fingerprint`: what others pin; "" if an authority has signed it: then it is
    checked as usual, so that it can be renewed, and `names` are the host names in it.
    """

    file: Path
    key: Path
    fingerprint: str
    names: tuple[str, ...] = ()


def load_or_create(folder: Path) -> Certificate:
    """Our own, made on first use. Its key is its owner's alone. Raises OSError, MachineError."""
    file, key = folder / "tls-certificate.pem", folder / "tls-key.pem"
    if not file.exists() or not key.exists():
        _create(file, key)
    try:
        return load(file, key)
    except UsageError as error:
        raise MachineError(
            f"{error} Remove both files to have new ones made; machines that joined must then "
            "join again."
        ) from error


def load(file: Path, key: Path) -> Certificate:
    """The operator's. Raises UsageError if it cannot serve: which file, and why."""
    certificate = _parse(file)
    if certificate.not_valid_after_utc < datetime.datetime.now(datetime.UTC):
        day = certificate.not_valid_after_utc.date()
        raise UsageError(f"The certificate {file} has expired on {day}: renew it.")
    try:
        ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER).load_cert_chain(file, key, password=_no_password)
    except (ssl.SSLError, OSError) as error:
        reason = getattr(error, "reason", None) or getattr(error, "strerror", None) or error
        raise UsageError(f"The key {key} does not fit the certificate {file}: {reason}.") from error
    if certificate.issuer != certificate.subject:
        return Certificate(file.resolve(), key.resolve(), "", _names(certificate))
    digest = hashlib.sha256(certificate.public_bytes(serialization.Encoding.DER)).hexdigest()
    return Certificate(file.resolve(), key.resolve(), f"sha256:{digest}")


def _parse(file: Path) -> x509.Certificate:
    try:
        return x509.load_pem_x509_certificate(file.read_bytes())  # the first of a chain
    except OSError as error:
        raise UsageError(f"The certificate {file} cannot be read: {error.strerror}.") from error
    except ValueError as error:
        raise UsageError(f"{file} is no certificate in PEM.") from error


def _no_password() -> str:
    """OpenSSL would ask at the terminal."""
    raise UsageError("The key of --tls-key is encrypted; Canopy takes one without a password.")


def _names(certificate: x509.Certificate) -> tuple[str, ...]:
    """Its host names without wildcards."""
    names: list[str] = []
    with contextlib.suppress(x509.ExtensionNotFound):
        extension = certificate.extensions.get_extension_for_class(x509.SubjectAlternativeName)
        names += extension.value.get_values_for_type(x509.DNSName)
        names += map(str, extension.value.get_values_for_type(x509.IPAddress))
    return tuple(name for name in names if "*" not in name)


def _create(file: Path, key: Path) -> None:
    secret = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, "Canopy broker")])
    certificate = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(secret.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(_FROM)
        .not_valid_after(_NEVER_EXPIRES)
        .add_extension(x509.SubjectAlternativeName([x509.DNSName(socket.gethostname())]), False)
        .add_extension(x509.BasicConstraints(ca=False, path_length=None), True)
        .sign(secret, hashes.SHA256())
    )
    pem = secret.private_bytes(
        serialization.Encoding.PEM,
        serialization.PrivateFormat.PKCS8,
        serialization.NoEncryption(),
    )
    write_private(key, pem.decode())
    write_private(file, certificate.public_bytes(serialization.Encoding.PEM).decode())
