"""The broker's addresses, as people write them."""

import pytest

from broker.addresses import Address, addresses
from broker.amqp import AmqpSession
from broker.errors import BrokerError, ConnectionLost

ONE = "amqp://node:pass%2Cword@a:5672/%2F"
TWO = "amqps://node:p@[::1]:5671/"
DIGEST = bytes(range(32))


def test_one_address_and_several() -> None:
    assert addresses(ONE) == [Address(ONE, None)]
    assert addresses(f" {ONE} , {TWO},{ONE},") == [Address(ONE, None), Address(TWO, None)]
    assert [address.place for address in addresses(f"{ONE},{TWO}")] == ["a:5672", "[::1]:5671"]
    assert [address.secure for address in addresses(f"{ONE},{TWO}")] == [False, True]


@pytest.mark.parametrize("digits", [DIGEST.hex(), DIGEST.hex(":").upper()])
def test_a_fingerprint_is_not_for_pika(digits: str) -> None:
    (address,) = addresses(f"{TWO}?heartbeat=9&fingerprint=sha256:{digits}")
    assert address == Address(f"{TWO}?heartbeat=9", DIGEST)


@pytest.mark.parametrize(
    ("urls", "reason"),
    [
        ("", "is empty"),
        (" , ", "is empty"),
        ("ftp://u:secret@h/", "does not begin with"),
        ("amqp://", "names no host"),
        ("amqp://u:secret@/", "names no host"),
        ("amqp://u:secret@h:port/", "malformed host or port"),
        ("amqp://u:sec/ret@h:5672/", "malformed host or port"),
        ("amqp://u:secret@h:99999/", "malformed host or port"),
        ("amqp://[::1/", "malformed host or port"),
        (f"{ONE},nonsense", "address 2 of 2"),
        (f"amqp://u:secret@h/?fingerprint=sha256:{DIGEST.hex()}", "must begin with amqps"),
        ("amqps://u:secret@h/?fingerprint=sha256:00", "malformed fingerprint"),
        (f"amqps://u:secret@h/?fingerprint=md5:{DIGEST.hex()}", "malformed fingerprint"),
        ("amqps://u:secret@h/?fingerprint=", "malformed fingerprint"),
        ("amqps://u:secret@h/?fingerprint=sha256:a&fingerprint=sha256:b", "malformed fingerprint"),
    ],
)
def test_a_malformed_address_says_what_is_wrong_without_the_password(
    urls: str, reason: str
) -> None:
    with pytest.raises(BrokerError, match=reason) as failure:
        addresses(urls)
    assert "sec" not in str(failure.value)


@pytest.mark.parametrize("url", ["nonsense", "amqp://u:p@127.0.0.1:1/?heartbeat=often"])
async def test_a_session_cannot_be_opened_with_a_malformed_address(url: str) -> None:
    with pytest.raises(BrokerError) as failure:
        await AmqpSession.open(url, "test")
    assert not isinstance(failure.value, ConnectionLost)
