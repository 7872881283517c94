"""The certificate of the broker's TLS listener: our own, or the operator's."""

import datetime
import re
from pathlib import Path

import pytest
from click.testing import CliRunner
from cryptography import x509
from cryptography.hazmat.primitives import serialization

from broker.tls import fingerprint_of
from cli import certificate
from cli.commands.up import up
from cli.errors import MachineError, UsageError
from tests.certificates import Authority


def test_our_own_is_made_once_and_its_key_is_private(tmp_path: Path) -> None:
    made = certificate.load_or_create(tmp_path)
    assert certificate.load_or_create(tmp_path) == made
    assert made.key.stat().st_mode & 0o777 == 0o600
    parsed = x509.load_pem_x509_certificate(made.file.read_bytes())
    der = parsed.public_bytes(serialization.Encoding.DER)
    assert made.fingerprint == fingerprint_of(der)
    assert re.fullmatch("sha256:[0-9a-f]{64}", made.fingerprint)
    assert made.names == ()


def test_a_torn_file_of_our_own_says_what_to_do(tmp_path: Path) -> None:
    certificate.load_or_create(tmp_path).file.write_text("torn")
    with pytest.raises(MachineError, match=r"is no certificate.*join again"):
        certificate.load_or_create(tmp_path)


def test_an_authoritys_is_checked_by_its_names(tmp_path: Path) -> None:
    file, key = Authority().sign(tmp_path, names=["canopy.example", "*.example"])
    loaded = certificate.load(file, key)
    assert (loaded.fingerprint, loaded.names) == ("", ("canopy.example",))


def test_a_certificate_that_cannot_serve_is_refused_in_one_line(tmp_path: Path) -> None:
    authority = Authority()
    yesterday = datetime.datetime.now(datetime.UTC) - datetime.timedelta(days=1)
    file, key = authority.sign(tmp_path / "old", names=["a"], until=yesterday)
    with pytest.raises(UsageError, match="has expired on"):
        certificate.load(file, key)
    file, _ = authority.sign(tmp_path / "one", names=["a"])
    _, key = authority.sign(tmp_path / "two", names=["a"])
    with pytest.raises(UsageError, match=r"does not fit the certificate"):
        certificate.load(file, key)
    with pytest.raises(UsageError, match="cannot be read: No such file"):
        certificate.load(tmp_path / "missing", key)
    with pytest.raises(UsageError, match="is no certificate in PEM"):
        certificate.load(key, key)
    with pytest.raises(UsageError, match=r"missing.*No such file"):
        certificate.load(file, tmp_path / "missing")


def test_an_encrypted_key_is_refused_without_a_question(tmp_path: Path) -> None:
    file, key = Authority().sign(tmp_path, names=["a"], password=b"secret")
    with pytest.raises(UsageError, match="is encrypted"):
        certificate.load(file, key)


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (("--listen", "127.0.0.2", "--tls-cert", "a"), "--tls-cert and --tls-key go together"),
        (("--listen", "127.0.0.2", "--tls-key", "a"), "--tls-cert and --tls-key go together"),
        (("--tls-cert", "a", "--tls-key", "b"), "say the address, too"),
        (("--listen", "no.such.invalid"), "Cannot listen on 'no.such.invalid'"),
    ],
)
def test_options_that_do_not_fit_together_are_refused(
    words: tuple[str, ...], says: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("CANOPY_HOME", str(tmp_path))
    refused = CliRunner().invoke(up, ["--engine", "echo", *words])
    assert isinstance(refused.exception, UsageError)
    assert says in str(refused.exception)


def test_listening_is_for_our_own_broker(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CANOPY_HOME", str(tmp_path))
    monkeypatch.setenv("CANOPY_AMQP_URL", "amqp://a:b@rabbit/")
    refused = CliRunner().invoke(up, ["--engine", "echo", "--listen", "127.0.0.2"])
    assert "CANOPY_AMQP_URL names another" in str(refused.exception)
