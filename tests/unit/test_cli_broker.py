"""The private broker's configuration: users, rights, passwords, ports, plugins."""

import asyncio
import base64
import hashlib
import ipaddress
import json
import os
import re
import socket
from pathlib import Path
from urllib.parse import unquote, urlsplit

import pytest

from broker.addresses import addresses
from cli import certificate, credentials, node_tokens, plugins, ports, rabbitmq, token_watch
from cli.errors import CliError
from cli.home import Home
from cli.listener import reachable_addresses
from cli.node_tokens import TokenRecord
from cli.rabbitmq import PrivateBroker, TlsListener
from tests.listening import listening
from topology import names
from topology.prefix import Prefix


def test_password_hash_is_rabbitmqs_salted_sha256() -> None:
    salt = bytes.fromhex("908DC60A")  # the example of RabbitMQ's own documentation
    assert (
        credentials.password_hash("test12", salt)
        == "kI3GCqW5JLMJa4iX1lo7X4D6XbYqlLgxIs30+P6tENUV2POR"
    )


def test_every_password_hash_has_its_own_salt() -> None:
    first, second = credentials.password_hash("same"), credentials.password_hash("same")
    assert first != second
    raw = base64.b64decode(first)
    assert raw[4:] == hashlib.sha256(raw[:4] + b"same").digest()


def test_definitions_name_three_users_and_no_guest() -> None:
    document = json.loads(
        json.dumps(credentials.definitions({"api": "a", "node": "b", "admin": "c"}, Prefix()))
    )
    assert [user["name"] for user in document["users"]] == ["api", "node", "admin"]
    assert {user["name"]: user["tags"] for user in document["users"]} == {
        "api": ["monitoring"],
        "node": [],
        "admin": ["administrator"],
    }
    assert {right["user"] for right in document["permissions"]} == {"api", "node", "admin"}


def test_who_has_an_expired_token_is_out_before_the_broker_listens(tmp_path: Path) -> None:
    home = Home(tmp_path / "home")
    with node_tokens.changing(home) as records:
        for name, expires in (("room1", 1.0), ("room2", None), ("room3", 1e10)):
            records[name] = TokenRecord(
                name=name, model="m", engine="echo", parent="root", created=0, expires=expires
            )
    PrivateBroker(home).prepare()
    document = json.loads((home.broker / "definitions.json").read_text())
    users = {user["name"]: user for user in document["users"]}
    assert set(users) == {"canopy.node.room1", "api", "node", "admin"}
    assert users["canopy.node.room1"]["tags"] == []
    assert "canopy.node.room1" not in {right["user"] for right in document["permissions"]}


async def test_expired_tokens_that_cannot_be_ended_are_told(tmp_path: Path) -> None:
    home = Home(tmp_path / "home")
    said: list[str] = []
    await token_watch.end_expired(home, "", said.append)
    assert said == []
    with node_tokens.changing(home) as records:
        records["room1"] = TokenRecord(
            name="room1", model="m", engine="echo", parent="root", created=0, expires=1.0
        )
    await token_watch.end_expired(home, "", said.append)
    await token_watch.end_expired(home, "http://a:b@127.0.0.1:1", said.append)
    no_url, no_answer = said
    assert no_url.endswith("are still let in: set CANOPY_MANAGEMENT_URL")
    assert "127.0.0.1:1" in no_answer
    assert set(node_tokens.read(home)) == {"room1"}


def may(user: str, right: str, name: str) -> bool:
    document = json.loads(
        json.dumps(credentials.definitions({"api": "a", "node": "b", "admin": "c"}, Prefix()))
    )
    [rights] = [entry for entry in document["permissions"] if entry["user"] == user]
    return re.search(rights[right], name) is not None


@pytest.mark.parametrize("right", ["configure", "write", "read"])
def test_a_node_cannot_touch_what_belongs_to_the_api(right: str) -> None:
    assert not may("node", right, names.reply("api-1"))
    assert not may("node", right, names.watch("api-1"))
    assert may("node", right, names.node("n1"))


def test_the_api_can_enter_jobs_and_read_answers_but_no_nodes_queue() -> None:
    assert may("api", "write", names.JOBS_EXCHANGE)
    assert may("api", "read", names.reply("api-1"))
    assert not may("api", "read", names.node("n1"))
    assert not may("api", "configure", names.inbox("n1"))


def test_credentials_are_made_once_and_private(tmp_path: Path) -> None:
    file = tmp_path / "credentials.json"
    passwords = credentials.load_or_create(file)
    assert len(set(passwords.values())) == 4
    assert all(len(value) >= 32 for value in passwords.values())
    assert file.stat().st_mode & 0o777 == 0o600
    assert credentials.load_or_create(file) == passwords


def test_a_broken_credentials_file_is_made_anew(tmp_path: Path) -> None:
    file = tmp_path / "credentials.json"
    for torn in ("", "{half", "[]", "7"):
        file.write_text(torn)
        assert set(credentials.load_or_create(file)) == {"api", "node", "admin", "cookie"}
        file.write_text(torn)
        assert set(ports.remembered(file, ["a", "b"])) == {"a", "b"}


def test_instance_settings_and_addresses(tmp_path: Path) -> None:
    private = PrivateBroker(Home(tmp_path))
    Home(tmp_path).make()
    private.prepare()
    written = (tmp_path / "broker" / "conf.d" / "90-instance.conf").read_text()
    assert f"listeners.tcp.canopy = 127.0.0.1:{private.ports['amqp']}" in written
    address = private.address()
    assert address.amqp["node"].startswith("amqp://node:")
    assert address.amqp["node"].endswith(f"@127.0.0.1:{private.ports['amqp']}/%2F")
    assert set(address.management) == {"api", "admin"}
    assert (tmp_path / "broker" / "home" / ".erlang.cookie").stat().st_mode & 0o077 == 0


def test_ports_are_different_and_free() -> None:
    chosen = ports.pick(4)
    assert len(set(chosen)) == 4
    assert all(ports.is_free("127.0.0.1", port) for port in chosen)


def test_no_outgoing_connection_can_take_a_port_that_was_picked() -> None:
    lowest = int(Path("/proc/sys/net/ipv4/ip_local_port_range").read_text().split()[0])
    assert all(1024 < port < lowest for port in ports.pick(50))


def test_ports_stay_the_same_while_they_are_free(tmp_path: Path) -> None:
    file = tmp_path / "ports.json"
    first = ports.remembered(file, ["a", "b"])
    assert ports.remembered(file, ["a", "b"]) == first
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", first["a"]))
        taken.listen()
        second = ports.remembered(file, ["a", "b"])
    assert second["a"] != first["a"]
    assert second["b"] == first["b"]


def test_a_port_in_use_is_told_in_one_line() -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        with pytest.raises(
            CliError, match=rf"Port {port} is in use on 127.0.0.1. Choose another with --port"
        ):
            ports.check_free("127.0.0.1", port)


def test_a_bound_port_is_kept_and_refuses_until_somebody_listens() -> None:
    (port,) = ports.pick(1)
    with ports.bind("127.0.0.1", port) as bound:
        with pytest.raises(ConnectionRefusedError):
            socket.create_connection(("127.0.0.1", port), timeout=5)
        bound.listen()
        socket.create_connection(("127.0.0.1", port), timeout=5).close()
        with pytest.raises(CliError, match=rf"Port {port} is in use"):
            ports.bind("127.0.0.1", port)
    ports.bind("127.0.0.1", port).close()


def test_an_address_of_another_machine_is_told_in_one_line() -> None:
    with pytest.raises(CliError, match="not an address of this machine"):
        ports.check_free("192.0.2.1", 8000)


def application(folder: Path, name: str, *needs: str) -> None:
    ebin = folder / f"{name}-1.0" / "ebin"
    ebin.mkdir(parents=True)
    listed = ",".join(("kernel", *needs))
    (ebin / f"{name}.app").write_text(
        f"%% {{applications, [nothing]}}\n{{application, {name}, [{{applications, [{listed}]}}]}}."
    )


def test_the_plugins_view_holds_what_is_needed_and_no_more(tmp_path: Path) -> None:
    plugin_folder = tmp_path / "installed" / "plugins"
    application(plugin_folder, "rabbit", "ra")
    application(plugin_folder, "ra")
    application(plugin_folder, "rabbitmq_management", "rabbit", "cowboy")
    application(plugin_folder, "cowboy")
    application(plugin_folder, "rabbitmq_event_exchange", "rabbit")
    application(plugin_folder, "rabbitmq_mqtt", "rabbit")
    for name in ("sbin", "escript"):
        (tmp_path / "installed" / name).mkdir()
    script = tmp_path / "installed" / "sbin" / "rabbitmq-server"
    script.touch()
    started, env = plugins.server_script(script, tmp_path / "view")
    assert started == tmp_path / "view" / "sbin" / "rabbitmq-server"
    assert env == {"RABBITMQ_SCRIPTS_DIR": str(tmp_path / "view" / "sbin")}
    seen = {path.name for path in (tmp_path / "view" / "plugins").iterdir()}
    assert seen == {
        "rabbit-1.0",
        "ra-1.0",
        "rabbitmq_management-1.0",
        "cowboy-1.0",
        "rabbitmq_event_exchange-1.0",
    }


def test_an_unknown_installation_is_used_as_it_is(tmp_path: Path) -> None:
    script = tmp_path / "sbin" / "rabbitmq-server"
    assert plugins.server_script(script, tmp_path / "view") == (script, {})


@pytest.fixture
def private(tmp_path: Path) -> PrivateBroker:
    home = Home(tmp_path)
    home.make()
    broker = PrivateBroker(home)
    broker.prepare()
    return broker


def test_the_broker_works_and_crashes_in_a_folder_of_its_own(
    private: PrivateBroker, tmp_path: Path
) -> None:
    folder = tmp_path / "broker" / "work"
    assert private.server().cwd == private.epmd().cwd == folder
    assert private.server().env["ERL_CRASH_DUMP"] == str(folder / "erl_crash.dump")
    assert int(private.server().env["ERL_CRASH_DUMP_BYTES"]) <= 20_000_000
    for age in range(10):
        dump = folder / f"MnesiaCore.{age}"
        dump.touch()
        os.utime(dump, (1e9 - age, 1e9 - age))
    private.drop_old_dumps()
    assert sorted(file.name for file in folder.iterdir()) == [
        "MnesiaCore.0",
        "MnesiaCore.1",
        "MnesiaCore.2",
    ]


@pytest.mark.parametrize("address", ["::1", "127.0.0.2"])
def test_other_machines_have_a_listener_of_their_own(address: str, tmp_path: Path) -> None:
    home = Home(tmp_path)
    home.make()
    tls = TlsListener(address, certificate.load_or_create(home.broker))
    private = PrivateBroker(home, tls)
    private.prepare()
    written = (home.broker / "conf.d" / "90-instance.conf").read_text()
    assert f"listeners.tcp.canopy = 127.0.0.1:{private.ports['amqp']}\n" in written
    assert f"listeners.ssl.canopy = {address}:{private.ports['amqps']}\n" in written
    listener = private.listener()
    assert listener is not None
    parsed = addresses(",".join(listener.urls("node", "p@ss,word")))
    parts = urlsplit(parsed[0].url)
    assert (parts.hostname, parts.port) == (address, private.ports["amqps"])
    assert unquote(parts.password or "") == "p@ss,word"
    assert parsed[0].fingerprint is not None


def test_a_broker_for_its_own_machine_has_no_listener_for_others(private: PrivateBroker) -> None:
    assert private.listener() is None


def test_addresses_for_others_are_none_of_loopback() -> None:
    for everywhere in ("0.0.0.0", "::"):
        for address in map(ipaddress.ip_address, reachable_addresses(everywhere)):
            assert not address.is_loopback
            assert not address.is_link_local
    assert reachable_addresses("192.0.2.1") == ("192.0.2.1",)


async def test_what_accepts_and_does_not_answer_is_not_alive(
    private: PrivateBroker, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As with a stopped process: the kernel accepts for it."""
    monkeypatch.setattr(rabbitmq, "_ANSWER_SECONDS", 0.1)
    assert not await private.answers(), "nobody listens"
    with socket.socket() as stopped:
        stopped.bind(("127.0.0.1", private.ports["management"]))
        stopped.listen()
        assert not await private.answers()


async def test_what_answers_is_alive(private: PrivateBroker) -> None:
    async def speak(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        request = await reader.read(100)
        http = request.startswith(b"GET ")
        writer.write(
            b"HTTP/1.1 401 no\r\n\r\n"
            if http
            else private.ports["epmd"].to_bytes(4, "big") + b"name"
        )
        writer.close()

    async with (
        listening(speak, port=private.ports["management"]),
        listening(speak, port=private.ports["epmd"]),
    ):
        assert await private.answers()
        assert await private.epmd_answers()


def test_what_the_broker_listens_on_is_an_address() -> None:
    assert [ports.resolved(host) for host in ("::1", "[::1]", "0.0.0.0", "::")] == [
        "::1",
        "::1",
        "0.0.0.0",
        "::",
    ]
    assert ports.resolved("localhost") in ("127.0.0.1", "::1")
    with pytest.raises(CliError, match="Cannot listen on 'no\\.such"):
        ports.resolved("no.such.host.invalid")
