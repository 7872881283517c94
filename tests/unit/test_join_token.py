"""Tokens with which other machines join: what they say, and what is said about bad ones."""

import re
import time
from pathlib import Path
from unittest.mock import AsyncMock

import msgspec
import pytest
from click.testing import CliRunner

from broker import joined_users
from broker.addresses import addresses
from broker.amqp import AmqpSession
from broker.errors import AccessRefused
from cli import broker_urls, join_token, moments, node_tokens
from cli.commands import join as join_command
from cli.commands.join import _pasted, join
from cli.errors import StateError, UsageError
from cli.home import Home
from cli.join_token import JoinToken
from cli.node_tokens import TokenRecord
from cli.prepare.launch import token_pieces
from topology import names
from topology.prefix import Prefix
from topology.version import VERSION

TOKEN = JoinToken(
    name="room2",
    urls=("amqps://canopy.node.room2:secret@10.0.0.1:5671/%2F?fingerprint=sha256:00",),
    model="tiny",
    model_argument="/models/tiny",
    engine="transformers",
    parent="root",
    version="0.1.0",
    expires=None,
)
RECORD = {
    "amqp": dict.fromkeys(("api", "node", "admin"), "amqp://me:pass@rabbit:5673/place"),
    "tls": None,
}


def test_a_token_comes_back_as_it_was() -> None:
    line = join_token.encode(TOKEN)
    assert re.fullmatch(r"canopy1\.[A-Za-z0-9_-]+", line)
    assert join_token.decode(f"  {line}\n") == TOKEN


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("", "This is no token"),
        ("ck-123", "This is no token"),
        ("canopy1." + "x" * 9000, "9008 letters"),
        ("canopy1.%%%", "damaged"),
        ("canopy1.e30", "damaged"),
        (join_token.encode(TOKEN)[:-9], "damaged"),
        ("canopy1." + "W1tb" * 1500, "damaged"),
    ],
)
def test_what_is_no_token_is_refused_in_one_line_without_its_text(text: str, says: str) -> None:
    with pytest.raises(UsageError, match=says) as refusal:
        join_token.decode(text)
    assert "\n" not in str(refusal.value)
    assert "secret" not in str(refusal.value)


LINE = join_token.encode(TOKEN)


@pytest.mark.parametrize(
    "pasted",
    [
        f"{LINE[:50]}\n{LINE[50:]}\n",
        f"{LINE[:50]}\r\n  {LINE[50:90]} {LINE[90:]}",
        f'"{LINE}"',
        f"'{LINE}' ",
        f"./canopy join {LINE}",
        f"CANOPY_NODE_TOKEN={LINE}",
        f"> `{LINE}`",
        f"\ufeff{LINE}\u200b",
    ],
    ids=["broken", "indented", "quoted", "apostrophes", "command", "variable", "mail", "marks"],
)
def test_a_token_is_understood_as_mails_and_terminals_leave_it(pasted: str) -> None:
    assert join_token.decode(pasted) == TOKEN


def test_a_token_is_read_from_as_many_lines_as_it_has() -> None:
    lines = iter([LINE[:50] + "\n", LINE[50:] + "\n", "more"])
    assert join_token.decode(_pasted(lines)) == TOKEN
    assert next(lines) == "more"
    assert _pasted(["nonsense\n", "more"]) == "nonsense\n"
    assert len(_pasted("canopy1." + "x" * 1000 for _ in range(100))) < 20_000


def test_all_pieces_of_a_token_leave_the_process_list() -> None:
    words = ["join", "https://chat.example.org", LINE[:50], LINE[50:], "--slots", "4"]
    assert token_pieces(words) == [LINE[:50], LINE[50:]]
    assert token_pieces(["join", f"./canopy join {LINE}"]) == [f"./canopy join {LINE}"]
    assert token_pieces(["join", "-"]) == []


def test_a_token_of_another_release_is_refused() -> None:
    join_token.check(TOKEN, "0.1.7")
    with pytest.raises(UsageError, match=r"token is of Canopy 0\.1\.0, and this copy is 0\.2\.0"):
        join_token.check(TOKEN, "0.2.0")


async def test_a_wrong_clock_here_keeps_no_token_out(monkeypatch: pytest.MonkeyPatch) -> None:
    old = msgspec.structs.replace(TOKEN, expires=time.time() - 1)
    join_token.check(old, "0.1.0")
    monkeypatch.setattr(join_command, "_accepts", AsyncMock(return_value=""))
    session = AsyncMock()
    monkeypatch.setattr(AmqpSession, "open", AsyncMock(return_value=session))
    assert await join_command._reached(old, 0) == list(TOKEN.urls)
    session.close.assert_awaited()
    for token, says in ((old, "it expired on"), (TOKEN, "it was revoked or has expired")):
        monkeypatch.setattr(AmqpSession, "open", AsyncMock(side_effect=AccessRefused("no")))
        with pytest.raises(StateError, match=says):
            await join_command._reached(token, 0)


@pytest.mark.parametrize("option", ["--name", "--parent", "--model", "--expires"])
def test_what_the_token_decides_is_not_decided_here(option: str) -> None:
    outcome = CliRunner().invoke(join, [option, "room9", LINE])
    assert isinstance(outcome.exception, UsageError)
    assert f"./canopy node-token create {option} " in str(outcome.exception)


def test_a_joined_node_has_no_more_slots_than_its_parent_believes() -> None:
    line = join_token.encode(msgspec.structs.replace(TOKEN, version=VERSION))
    outcome = CliRunner().invoke(join, [line, "--slots", "1025"])
    assert "--slots must be a number from 1 to 1,024" in str(outcome.exception)


def test_an_address_for_another_machine() -> None:
    [url] = broker_urls.for_others(RECORD, "canopy.node.room2", "p@ss")
    assert url == "amqp://canopy.node.room2:p%40ss@rabbit:5673/place"
    urls = broker_urls.for_others(RECORD, "u", "p", ("a", "::1"))
    assert urls == ["amqp://u:p@a:5673/place", "amqp://u:p@[::1]:5673/place"]
    assert broker_urls.for_others(RECORD, "u", "p", ("[::1]:7",)) == ["amqp://u:p@[::1]:7/place"]
    assert broker_urls.vhost(RECORD) == "place"
    for wrong in (":5", "host:x", "host:0", "[::1]:70000", "two words", "a@b", "a/b", "a,b"):
        with pytest.raises(UsageError, match="--address must be"):
            broker_urls.for_others(RECORD, "u", "p", (wrong,))


@pytest.mark.parametrize("host", ["localhost", "127.0.0.1", "[::1]"])
def test_no_address_that_means_the_machine_itself(host: str) -> None:
    record = {**RECORD, "amqp": dict.fromkeys(("node", "admin"), f"amqp://u:p@{host}:5672/%2F")}
    with pytest.raises(StateError, match="another machine there"):
        broker_urls.for_others(record, "u", "p")


def test_a_broker_of_our_own_must_listen_for_others() -> None:
    private = {"amqp": {"node": "amqp://node:p@127.0.0.1:5/%2F", "admin": "amqp://admin:p@..."}}
    with pytest.raises(StateError, match=r"--listen 0\.0\.0\.0"):
        broker_urls.for_others(private, "u", "p")
    tls = {"addresses": ["10.0.0.1", "fe00::1"], "port": 9, "fingerprint": "", "prefix": "canopy"}
    urls = broker_urls.for_others({**private, "tls": tls}, "u", "p")
    assert urls == ["amqps://u:p@10.0.0.1:9/%2F", "amqps://u:p@[fe00::1]:9/%2F"]
    urls = broker_urls.for_others({**private, "tls": tls}, "u", "p", ("outside:4711",))
    assert urls == ["amqps://u:p@outside:4711/%2F"]


def test_moments() -> None:
    assert moments.parse("2d", 1000.0) == 1000.0 + 2 * 86400
    assert moments.parse("1970-01-02", 0.0) == 86400
    for text in ("", "2", "0d", "1970-01-01", "999999d9", "soon"):
        with pytest.raises(UsageError, match="--expires"):
            moments.parse(text, 5.0)
    assert [moments.ago(age) for age in (5, 61, 7200, 200_000)] == [
        "5 s ago",
        "1 min ago",
        "2 h ago",
        "2 d ago",
    ]


def _record(name: str) -> TokenRecord:
    return TokenRecord(name=name, model="m", engine="echo", parent="root", created=1.0)


def test_the_list_of_tokens_is_kept_private(tmp_path: Path) -> None:
    home = Home(tmp_path / "home")
    with node_tokens.changing(home) as records:
        records["room1"] = _record("room1")
    node_tokens.use(home, {"room1": "10.0.0.9", "unknown": "10.0.0.8"})
    [record] = node_tokens.read(home).values()
    assert record.last_host == "10.0.0.9"
    assert record.last_used is not None
    assert node_tokens.file(home).stat().st_mode & 0o077 == 0
    node_tokens.file(home).write_text("{")
    with pytest.raises(StateError, match="is damaged"):
        node_tokens.read(home)


def test_the_rights_are_for_one_node_of_one_tree_and_one_instance() -> None:
    granted = joined_users.rights("room2", Prefix("lab"))
    for pattern in (granted.configure, granted.write, granted.read):
        for name in ("lab.inbox.room22", "canopy.inbox.room2", "lab.inbox.room2.x", "lab.jobs"):
            assert not re.search(pattern, name)
    assert re.search(granted.write, "lab.joined")
    keys = joined_users.joined_keys("tiny")
    assert re.search(keys, names.joined_key(names.inbox("n1"), "tiny"))
    assert re.search(keys, names.joined_key(names.node("n1"), "tiny"))
    assert not re.search(keys, names.joined_key(names.inbox("n1"), "other"))
    assert not re.search(keys, names.watch("api"))


OWN = {
    "amqp": {
        "node": "amqp://node:x@127.0.0.1:5000/%2F?prefix=room",
        "admin": "amqp://admin:x@127.0.0.1:5000/%2F?prefix=room",
    },
    "tls": None,
    "tunnel": True,
    "address": "https://chat.example.org/canopy",
}


def test_where_tunnels_are_on_the_token_names_the_pages_last() -> None:
    tunnel = "https://a%40b:p%3Aq@chat.example.org/canopy/?prefix=room"
    assert broker_urls.for_others(OWN, "a@b", "p:q") == [tunnel]
    tls = {"addresses": ["192.0.2.1"], "port": 1, "fingerprint": "sha256:00", "prefix": "room"}
    direct, last = broker_urls.for_others({**OWN, "tls": tls}, "a@b", "p:q")
    assert direct.startswith("amqps://a%40b:p%3Aq@192.0.2.1:1/")
    assert last == tunnel


def test_without_https_the_token_names_no_tunnel() -> None:
    with pytest.raises(StateError, match="--listen"):
        broker_urls.for_others({**OWN, "address": "http://127.0.0.1:8000"}, "a", "p")


def test_an_address_beside_the_token_leads_through_the_pages() -> None:
    url = "amqps://n:p%2Cq@10.0.0.1:5671/room%201?fingerprint=sha256:00"
    (address,) = addresses(broker_urls.through_pages("https://chat.example.org:8443/x/", url))
    assert address.tunnelled
    assert address.url == "https://n:p%2Cq@chat.example.org:8443/x/?vhost=room%201"
    assert (address.fingerprint, address.place) == (None, "chat.example.org:8443")


@pytest.mark.parametrize(
    ("urls", "address"),
    [
        (("amqp://",), None),
        (("zzz",), None),
        (("amqps://room2:secret@h:99999/",), None),
        (("amqps://room2:secret@h/,amqps://room2:secret@i/",), None),
        (TOKEN.urls, "https://localhost:99999"),
        (TOKEN.urls, "https://a,https://b"),
        (TOKEN.urls, "https://me:word@chat.example.org"),
        (TOKEN.urls, "https://chat.example.org/?x=1"),
        (TOKEN.urls, "https://"),
    ],
)
def test_addresses_that_lead_nowhere_are_refused_in_one_line(
    urls: tuple[str, ...], address: str | None
) -> None:
    line = join_token.encode(msgspec.structs.replace(TOKEN, urls=urls, version=VERSION))
    words = [address, line] if address else [line]
    outcome = CliRunner().invoke(join, words)
    assert isinstance(outcome.exception, UsageError), outcome.exception
    assert "\n" not in str(outcome.exception)
    assert "secret" not in str(outcome.exception)
