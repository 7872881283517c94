"""What RabbitMQ's LDAP plugin is configured with, and what is refused before it starts."""

from pathlib import Path

import pytest

from cli import node_directory
from cli.errors import SettingError
from cli.home import Home
from cli.rabbitmq import PrivateBroker
from topology.prefix import Prefix

GOOD = {
    "CANOPY_NODE_LDAP_URL": "ldaps://ldap.example.org",
    "CANOPY_NODE_LDAP_DN": "cn=${username},ou=nodes,dc=example,dc=org",
    "CANOPY_NODE_LDAP_GROUP": "cn=canopy-nodes,ou=groups,dc=example,dc=org",
}


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("CANOPY_NODE_LDAP_URL", "ldap.example.org"),
        ("CANOPY_NODE_LDAP_URL", "ldap://ldap.example.org"),
        ("CANOPY_NODE_LDAP_URL", "https://ldap.example.org"),
        ("CANOPY_NODE_LDAP_URL", "ldaps://10.0.0.1"),
        ("CANOPY_NODE_LDAP_URL", "ldaps://a.example, ldap://b.example"),
        ("CANOPY_NODE_LDAP_URL", "ldaps://ldap.example.org:port"),
        ("CANOPY_NODE_LDAP_START_TLS", "yes"),
        ("CANOPY_NODE_LDAP_START_TLS", "perhaps"),
        ("CANOPY_NODE_LDAP_DN", "cn=node,dc=example"),
        ("CANOPY_NODE_LDAP_DN", "cn=${username},\ndc=example"),
        ("CANOPY_NODE_LDAP_GROUP", ""),
        ("CANOPY_NODE_LDAP_CA", "/nowhere"),
        ("CANOPY_NODE_LDAP_BIND_PASSWORD_FILE", "/nowhere"),
    ],
)
def test_what_cannot_be_used_is_named(name: str, value: str) -> None:
    with pytest.raises(SettingError, match=name):
        node_directory.read({**GOOD, name: value})


def test_without_an_address_there_is_none() -> None:
    assert node_directory.read({}) is None


def test_texts_cannot_leave_their_place_in_the_configuration(tmp_path: Path) -> None:
    secret = tmp_path / "secret"
    secret.write_text('a"},{x,\\ä')
    directory = node_directory.read(
        {
            **GOOD,
            "CANOPY_NODE_LDAP_BIND_DN": 'cn="quoted"',
            "CANOPY_NODE_LDAP_BIND_PASSWORD_FILE": str(secret),
        }
    )
    assert directory is not None
    written = node_directory.settings(directory, Prefix())
    assert r'{"cn=\x{22}quoted\x{22}", "a\x{22}},{x,\x{5c}\x{c3}\x{a4}"}' in written


def test_the_configuration_goes_when_the_setting_goes(tmp_path: Path) -> None:
    home = Home(tmp_path)
    PrivateBroker(home, directory=node_directory.read(GOOD)).prepare()
    assert node_directory.PLUGIN in (home.broker / "enabled_plugins").read_text()
    settings = home.broker / "conf.d" / "90-instance.conf"
    assert "auth_backends.2 = ldap" in settings.read_text()
    PrivateBroker(home).prepare()
    assert node_directory.PLUGIN not in (home.broker / "enabled_plugins").read_text()
    assert "ldap" not in settings.read_text()
    assert "ldap" not in (home.broker / "advanced.config").read_text()
