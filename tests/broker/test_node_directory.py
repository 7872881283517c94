"""Nodes whose passwords a directory checks, on a real RabbitMQ and a real OpenLDAP."""

import urllib.parse
from collections.abc import Iterator
from pathlib import Path

import pika
import pytest
from pika.exceptions import (
    AMQPError,
    ChannelClosedByBroker,
    ProbableAccessDeniedError,
    ProbableAuthenticationError,
)

from cli import node_directory
from cli.node_directory import NodeDirectory
from cli.rabbitmq import Broker
from tests.broker.test_rights import REFUSED as WITH_A_TOKEN
from tests.directory import BASE, NODES_GROUP, PASSWORD, Directory, private_directory
from tests.realbroker import Server, echo_node, private_server, root
from topology import names

# The directory does not say which model a node serves.
REFUSED = {what: attack for what, attack in WITH_A_TOKEN.items() if "another model" not in what}


def environment(directory: Directory, **changes: str) -> dict[str, str]:
    """Over TLS, as an operator sets it."""
    return {
        "CANOPY_NODE_LDAP_URL": f"ldaps://localhost:{directory.tls_port}",
        "CANOPY_NODE_LDAP_CA": str(directory.ca),
        "CANOPY_NODE_LDAP_DN": f"cn=${{username}},ou=nodes,{BASE}",
        "CANOPY_NODE_LDAP_GROUP": NODES_GROUP,
        **changes,
    }


def settings(directory: Directory, **changes: str) -> NodeDirectory:
    wanted = node_directory.read(environment(directory, **changes))
    assert wanted is not None
    return wanted


@pytest.fixture(scope="module")
def directory(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Directory]:
    with private_directory(tmp_path_factory.mktemp("directory")) as running:
        for name in ("gpu1", "room2", "any.*"):
            running.add_node(names.joined_user(name), NODES_GROUP)
        running.add_node(names.joined_user("gpu2"))
        for name in ("api", "admin", "gpu9"):
            running.add_node(name, NODES_GROUP)
        yield running


@pytest.fixture(scope="module")
def server(directory: Directory, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    home = tmp_path_factory.mktemp("canopy")
    with private_server(home, directory=settings(directory)) as running:
        yield running


def url_of(server: Server, name: str, password: str = PASSWORD) -> str:
    """The address for the node of that name."""
    address = urllib.parse.urlsplit(server.address.amqp["node"])
    user = names.joined_user(name)
    login = f"{urllib.parse.quote(user, safe='')}:{urllib.parse.quote(password, safe='')}"
    return f"amqp://{login}@{address.hostname}:{address.port}/%2F"


def connect(server: Server, name: str, password: str = PASSWORD) -> pika.BlockingConnection:
    return pika.BlockingConnection(pika.URLParameters(url_of(server, name, password)))


def refused(server: Server, name: str, password: str = PASSWORD) -> bool:
    try:
        connect(server, name, password).close()
    except (ProbableAuthenticationError, ProbableAccessDeniedError):
        return True
    return False


def broker_as(server: Server, name: str) -> Broker:
    """The broker as that node's machine knows it."""
    return Broker({"node": url_of(server, name)}, {})


def test_a_node_of_the_group_joins_and_serves(server: Server) -> None:
    with (
        root(server.address),
        echo_node(broker_as(server, "gpu1"), "gpu1", "root") as node,
    ):
        assert any(" ready " in line for line in node.lines)


def test_a_wrong_password_and_an_unknown_name_are_refused(server: Server) -> None:
    assert refused(server, "gpu1", "wrong")
    assert refused(server, "nobody")
    assert refused(server, "gpu1", "")  # an unauthenticated bind, which directories accept


def test_a_node_outside_the_group_is_refused(server: Server) -> None:
    assert refused(server, "gpu2")


@pytest.mark.parametrize(
    ("name", "password", "reason"),
    [
        ("gpu1", "wrong", "refused the user name or password"),
        ("gpu2", PASSWORD, "lets this user in nowhere"),
    ],
)
def test_a_node_that_is_not_let_in_says_why_and_ends(
    server: Server, name: str, password: str, reason: str
) -> None:
    broker = Broker({"node": url_of(server, name, password)}, {})
    node = echo_node(broker, name, "root")
    assert node.wait_exit(30) == 1
    assert "the directory does not admit it" in node.lines[-1]
    assert reason in node.lines[-1]


def test_leaving_the_group_ends_the_right_to_connect(server: Server, directory: Directory) -> None:
    dn = directory.add_node(names.joined_user("gpu3"), NODES_GROUP)
    connect(server, "gpu3").close()
    directory.leave(NODES_GROUP, dn)
    assert refused(server, "gpu3")


@pytest.mark.parametrize("name", ["api", "admin", "gpu9"])
def test_nobody_in_the_directory_can_be_anything_but_a_node(server: Server, name: str) -> None:
    url = url_of(server, "").replace(urllib.parse.quote(names.joined_user("")), name)
    assert f"//{name}:" in url
    with pytest.raises((ProbableAuthenticationError, ProbableAccessDeniedError)):
        pika.BlockingConnection(pika.URLParameters(url))


def test_the_brokers_own_users_need_no_directory(server: Server) -> None:
    for user in ("api", "node", "admin"):
        pika.BlockingConnection(pika.URLParameters(server.address.amqp[user])).close()


@pytest.mark.parametrize("name", ["any.*", "gpu1,ou=nodes", "gpu1 ", "*"])
def test_a_name_that_is_a_pattern_or_a_part_of_a_dn_is_refused(server: Server, name: str) -> None:
    assert refused(server, name)


@pytest.fixture(scope="module")
def room2(server: Server) -> Iterator[str]:
    """The tree root -> n1, room2, and the address with room2's password."""
    with (
        root(server.address),
        echo_node(server.address, "n1", "root"),
        echo_node(broker_as(server, "room2"), "room2", "root"),
    ):
        yield url_of(server, "room2")


@pytest.mark.parametrize("attack", REFUSED)
def test_it_has_the_rights_of_a_node_with_a_token(room2: str, attack: str) -> None:
    connection = pika.BlockingConnection(pika.URLParameters(room2))
    channel = connection.channel()
    channel.confirm_delivery()
    with pytest.raises(ChannelClosedByBroker) as refusal:
        REFUSED[attack](channel)
    connection.close()
    assert refusal.value.reply_code == (406 if attack == "another's name" else 403)


def test_it_may_not_use_the_management_api(server: Server) -> None:
    import httpx

    admin = urllib.parse.urlsplit(server.address.management["admin"])
    address = f"http://{admin.hostname}:{admin.port}/api/overview"
    answer = httpx.get(address, auth=(names.joined_user("gpu1"), PASSWORD))
    assert answer.status_code == 401


def test_no_password_is_in_the_brokers_log_nor_readable_by_others(
    server: Server, tmp_path_factory: pytest.TempPathFactory
) -> None:
    refused(server, "gpu1", "a password nobody may see")
    home: Path = server._home.path
    logs = "".join(log.read_text(errors="replace") for log in (home / "logs").glob("*.log"))
    assert "a password nobody may see" not in logs
    assert PASSWORD not in logs
    assert (home / "broker" / "advanced.config").stat().st_mode & 0o077 == 0


def test_a_directory_that_is_down_refuses_its_nodes_within_seconds_and_nobody_else(
    tmp_path: Path,
) -> None:
    with private_directory(tmp_path / "directory") as gone:
        wanted = settings(gone)
    with private_server(tmp_path / "canopy", directory=wanted) as server:
        pika.BlockingConnection(pika.URLParameters(server.address.amqp["node"])).close()
        with pytest.raises(AMQPError):
            connect(server, "gpu1")


def test_starttls_with_an_account_that_reads_the_group(tmp_path: Path) -> None:
    with private_directory(tmp_path / "directory") as directory:
        directory.add_node(names.joined_user("gpu1"), NODES_GROUP)
        secret = tmp_path / "password"
        secret.write_text(f"{PASSWORD}\n")
        wanted = settings(
            directory,
            CANOPY_NODE_LDAP_URL=f"ldap://localhost:{directory.port}",
            CANOPY_NODE_LDAP_START_TLS="yes",
            CANOPY_NODE_LDAP_BIND_DN=f"cn=reader,{BASE}",
            CANOPY_NODE_LDAP_BIND_PASSWORD_FILE=str(secret),
        )
        with private_server(tmp_path / "canopy", directory=wanted) as server:
            connect(server, "gpu1").close()
            assert refused(server, "gpu1", "wrong")
        assert "STARTTLS" in directory.log.read_text()


@pytest.mark.parametrize("start_tls", [False, True])
def test_a_certificate_for_another_name_is_refused(tmp_path: Path, start_tls: bool) -> None:
    with private_directory(tmp_path / "directory", "other.example.org") as directory:
        directory.add_node(names.joined_user("gpu1"), NODES_GROUP)
        changes = {}
        if start_tls:
            changes["CANOPY_NODE_LDAP_URL"] = f"ldap://localhost:{directory.port}"
            changes["CANOPY_NODE_LDAP_START_TLS"] = "yes"
        wanted = settings(directory, **changes)
        with private_server(tmp_path / "canopy", directory=wanted) as server:
            assert refused(server, "gpu1")
        assert (
            'BIND dn="cn=canopy.node.gpu1' not in directory.log.read_text()
        )  # no password was sent


def test_a_certificate_of_somebody_else_is_refused(tmp_path: Path) -> None:
    with (
        private_directory(tmp_path / "directory") as directory,
        private_directory(tmp_path / "other") as other,
    ):
        directory.add_node(names.joined_user("gpu1"), NODES_GROUP)
        wanted = settings(directory, CANOPY_NODE_LDAP_CA=str(other.ca))
        with (
            private_server(tmp_path / "canopy", directory=wanted) as server,
            pytest.raises(AMQPError),
        ):
            connect(server, "gpu1")
