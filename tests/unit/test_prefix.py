"""Names on a shared broker: translated both ways, and another instance's belong to nobody here."""

import re
from collections.abc import Callable

import pytest
from hypothesis import given
from hypothesis import strategies as st

from api.environment import BadEnvironment
from api.environment import read as read_api
from broker.amqp import AmqpSession
from broker.errors import BadAddress
from cli import addresses, credentials
from cli.errors import SettingError
from topology import names
from topology.prefix import Prefix, with_prefix, without_prefix
from worker import settings
from worker.errors import BadSettings

AMQP = "amqp://node:secret@broker:5672/%2F"
prefixes = st.from_regex(r"[a-z][a-z0-9_-]{0,31}", fullmatch=True).filter(
    lambda name: name != "canopy"
)


@given(prefix=prefixes, node=st.from_regex(names.NODE_NAME, fullmatch=True))
def test_names_are_the_same_after_a_journey_and_foreign_ones_are_nobodys(
    prefix: str, node: str
) -> None:
    ours = Prefix(prefix)
    assert ours.outside(names.node(node)) == f"{prefix}.node.{node}"
    assert ours.inside(ours.outside(names.node(node))) == names.node(node)
    assert ours.inside(names.node(node)) == ""
    assert names.node_of(Prefix().inside(ours.outside(names.node(node)))) is None


def test_rabbitmqs_own_names_stay() -> None:
    for name in ("", "amq.rabbitmq.event", "other.queue"):
        assert Prefix("beta").outside(name) == Prefix("beta").inside(name) == name
    assert Prefix().outside(names.DEAD_QUEUE) == Prefix().inside("canopy.dead") == "canopy.dead"


def test_the_prefix_is_an_option_of_every_address() -> None:
    both = with_prefix(f"{AMQP}, {AMQP}?heartbeat=3", "beta")
    assert both == f"{AMQP}?prefix=beta,{AMQP}?heartbeat=3&prefix=beta"
    for url, plain in zip(both.split(","), (AMQP, f"{AMQP}?heartbeat=3"), strict=True):
        assert Prefix.of(url).name == "beta"
        assert without_prefix(url) == plain
    assert with_prefix(both, "beta") == both
    assert with_prefix(AMQP, "") == with_prefix(AMQP, "canopy") == AMQP
    assert with_prefix("", "beta") == ""
    assert Prefix.of(AMQP).name == "canopy"


@pytest.mark.parametrize("bad", ["Beta", "a.b", "b" * 33, "1a", "a b", "é", "beta\n", "amq"])
def test_a_bad_prefix_is_refused_by_every_program(
    bad: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    environ = {"CANOPY_AMQP_URL": AMQP, "CANOPY_PREFIX": bad}
    options = settings.parse(["--name", "n1", "--model", "echo"])
    with pytest.raises(BadSettings, match="CANOPY_PREFIX: bad prefix"):
        settings.read(options, environ)
    with pytest.raises(BadEnvironment, match="CANOPY_PREFIX: bad prefix"):
        read_api(environ)
    for variable, value in environ.items():
        monkeypatch.setenv(variable, value)
    for read in (addresses.of_environment, addresses.own_prefix):
        with pytest.raises(SettingError, match="CANOPY_PREFIX: bad prefix"):
            read()


async def test_a_bad_prefix_in_an_address_is_told() -> None:
    with pytest.raises(BadAddress, match="bad prefix 'Beta'"):
        await AmqpSession.open(f"{AMQP}?prefix=Beta", "test")


def test_a_queue_named_in_a_message_leaves_room_for_a_longer_prefix() -> None:
    longest = names.REPLY_PREFIX + "x" * (names.MAX_QUEUE_BYTES - len(names.REPLY_PREFIX))
    assert names.is_reply_queue(longest)
    assert names.is_amqp_name(Prefix("b" * 32).outside(longest))
    assert not names.is_reply_queue(longest + "x")


def test_two_prefixes_are_a_mistake() -> None:
    with pytest.raises(names.BadName, match="'gamma'"):
        with_prefix(f"{AMQP}?prefix=beta", "gamma")


@pytest.mark.parametrize("user", ["api", "node"])
def test_rights_end_at_the_prefix(user: str) -> None:
    for pattern in credentials.rights(user, Prefix("beta")).values():
        may: Callable[[str], object] = re.compile(pattern).search
        assert may("beta.events")
        for foreign in ("canopy.events", "beta-2.events", "xbeta.events", "alpha.beta.events"):
            assert not may(foreign)
