"""AMQP over TLS: pinned certificates, those of authorities, and what goes wrong with both."""

import asyncio
import datetime
import ssl
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from pathlib import Path
from urllib.parse import urlsplit

import pytest

from broker.amqp import AmqpSession
from broker.errors import AccessRefused, BadCertificate, BrokerError, ConnectionLost
from cli.ports import pick
from tests.certificates import Authority
from tests.listening import listening
from tests.realbroker import NodeProcess, Server, private_server

DAY = datetime.timedelta(days=1)


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    with private_server(tmp_path_factory.mktemp("tls"), "127.0.0.1") as running:
        running.wait_accepting_others("127.0.0.1")
        yield running


@pytest.fixture
def url(server: Server) -> str:
    """The broker's address as another machine has it."""
    (url,) = server.urls("node")
    return url


async def failure(url: str) -> BrokerError:
    """Why no session is opened there; it is one line, without the password."""
    with pytest.raises(BrokerError) as raised:
        await AmqpSession.open(url, "test")
    text = str(raised.value)
    assert "\n" not in text
    assert len(text) < 300
    return raised.value


async def test_a_session_with_a_pinned_certificate_carries_messages(url: str) -> None:
    session = await AmqpSession.open(url, "test")
    queue = "canopy.inbox.tls"
    await session.declare_queue(queue, exclusive=True)
    arrived: asyncio.Future[bytes] = asyncio.get_running_loop().create_future()
    await session.consume(queue, lambda delivery: arrived.set_result(delivery.body), prefetch=1)
    body = bytes(range(256)) * 20_000  # larger than socket buffers and TLS records
    assert await session.publish("", queue, body)
    async with asyncio.timeout(30):
        assert await arrived == body
    await session.close()


async def test_a_node_joins_over_tls(server: Server, url: str) -> None:
    root = NodeProcess(server.address, "root", "--model", "echo", "--engine", "none")
    node = NodeProcess(
        server.address,
        *("n1", "--parent", "root", "--model", "echo", "--engine", "echo", "--wait", "30"),
        env={"CANOPY_AMQP_URL": url},
    )
    with root, node:
        pass


async def test_another_certificate_than_the_pinned_one_gets_no_password(url: str) -> None:
    begin, _, digits = url.rpartition(":")
    wrong = f"{begin}:{bytes(32).hex()}"
    error = await failure(wrong)
    assert isinstance(error, BadCertificate)
    assert "another certificate than the pinned one: it is another server" in str(error)
    assert digits in str(error)


async def test_a_certificate_that_no_authority_has_signed_is_refused_unless_pinned(
    url: str,
) -> None:
    error = await failure(url.partition("?")[0])
    assert isinstance(error, BadCertificate)
    assert "self-signed certificate" in str(error)


async def test_the_wrong_port_says_so(server: Server, url: str) -> None:
    plain = server.address.amqp["node"]
    plain_port, tls_port = urlsplit(plain).port, urlsplit(url).port
    error = await failure(url.replace(f":{tls_port}/", f":{plain_port}/"))
    assert "does not speak TLS as expected: is that the broker's TLS port?" in str(error)
    error = await failure(plain.replace(f":{plain_port}/", f":{tls_port}/"))
    assert "begins with amqps://" in str(error)


async def test_what_is_wrong_with_each_address_is_told() -> None:
    first, second = pick(2)
    error = await failure(f"amqps://u:p@127.0.0.1:{first}/,amqp://u:p@nowhere.invalid:{second}/")
    assert isinstance(error, ConnectionLost)
    assert f"127.0.0.1:{first}: nothing listens there" in str(error)
    assert f"nowhere.invalid:{second}: there is no such host" in str(error)


async def test_a_wrong_password_is_told_apart(url: str) -> None:
    error = await failure(url.replace("node:", "node:x"))
    assert isinstance(error, AccessRefused)


@asynccontextmanager
async def serving(certificate: Path, key: Path) -> AsyncIterator[int]:
    """A TLS server that says nothing; its port."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(certificate, key)

    async def accept(_: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.close()

    async with listening(accept, context=context) as port:
        yield port


async def test_a_certificate_of_an_authority_must_be_valid_for_its_name(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    authority = Authority()
    (tmp_path / "authority.pem").write_text(authority.pem)
    monkeypatch.setenv("SSL_CERT_FILE", str(tmp_path / "authority.pem"))
    now = datetime.datetime.now(datetime.UTC)
    reasons = []
    for number, (name, until) in enumerate(
        [("localhost", now - DAY), ("other.example", now + DAY), ("localhost", now + DAY)]
    ):
        files = authority.sign(tmp_path / str(number), names=[name], until=until)
        async with serving(*files) as port:
            reasons.append(str(await failure(f"amqps://u:p@localhost:{port}/")))
    assert "certificate has expired" in reasons[0]
    assert "Hostname mismatch" in reasons[1]
    assert "ended the connection before it was open" in reasons[2], "this certificate is good"


def test_a_broker_starts_although_its_address_for_others_is_gone(tmp_path: Path) -> None:
    """As after a restart while a network is down; 192.0.2.0/24 is nobody's."""
    with private_server(tmp_path, "192.0.2.1"):
        pass
