"""`node-token create|list|revoke`: credentials with which other machines join."""

import asyncio
import itertools
import json
import secrets
import sys
import time
from collections.abc import Coroutine
from typing import Any, TypeVar

import click
import msgspec

from broker import joined_users
from broker.errors import ManagementError, NameTaken
from broker.management import ManagementApi, edges
from cli import audit, broker_urls, credentials, instance, join_token, moments, node_tokens, options
from cli import home as homes
from cli.errors import SettingError, StateError, UnreachableError, UsageError
from cli.home import Home
from cli.instance import Record
from cli.join_token import JoinToken
from cli.node_tokens import TokenRecord
from topology.names import BadName, check_node_name, joined_user
from topology.version import VERSION

PASSWORD_BYTES = 24

T = TypeVar("T")


@click.command("create")
@click.option("--name", metavar="N", help="The node's; default: the first of room1, room2, ...")
@click.option("--model", help="Which of the models that run here; needed if there are several.")
@click.option("--parent", metavar="P", help="The node to hang below; default: the model's root.")
@click.option("--expires", metavar="WHEN", help="30d, 12h, or a date: 2027-01-31; default: never.")
@click.option(
    "--address",
    "addresses",
    metavar="HOST[:PORT]",
    multiple=True,
    help="How the other machine reaches this one, if not by an address of --listen. Repeatable.",
)
@options.as_json
def create(
    name: str | None,
    model: str | None,
    parent: str | None,
    expires: str | None,
    addresses: tuple[str, ...],
    as_json: bool,
) -> None:
    """Print a token, alone on standard output: with it one node joins from another machine.

    There: ./canopy join TOKEN. It has a password in it; ./canopy node-token revoke ends it.
    """
    home = homes.read()
    record = instance.running(home)
    model = _model(record, model)
    parent = parent or record["roots"][model]
    moment = moments.parse(expires, time.time()) if expires else None
    password = secrets.token_urlsafe(PASSWORD_BYTES)
    hashed = credentials.password_hash(password)
    api = ManagementApi(_management(record))
    with node_tokens.changing(home) as records:
        name = _run(_check_place(record, records, name, parent))
        user = api.prefix.outside(joined_user(name))
        urls = broker_urls.for_others(record, user, password, addresses)
        line = join_token.encode(_token(record, name, model, parent, urls, moment))
        with audit.recorded("create token", name, f"below {parent}, for {model}"):
            vhost = broker_urls.vhost(record)
            _run(joined_users.create(api, name, model, hashed, vhost, hashed=True))
        records[name] = TokenRecord(
            name=name,
            model=model,
            engine=record["engine"],
            parent=parent,
            created=time.time(),
            expires=moment,
            password_hash=hashed,
        )
    if as_json:
        print(json.dumps({"name": name, "model": model, "parent": parent, "token": line}))
        return
    print(line)
    print(f"for node {name}; on the other machine: ./canopy join TOKEN", file=sys.stderr)


def _model(record: Record, model: str | None) -> str:
    """The public name of the model that is meant. Raises UsageError."""
    served = list(record["roots"])
    if model is None:
        if len(served) > 1:
            raise UsageError(f"Several models run here; say --model, one of: {', '.join(served)}")
        return served[0]
    for public in served:
        if model in (public, record["asked"][public]):
            return public
    raise UsageError(f"No model {model!r} runs here; there are: {', '.join(served)}")


async def _check_place(
    record: Record, records: dict[str, TokenRecord], name: str | None, parent: str
) -> str:
    """The node's name, which nobody has. Raises CliError, ManagementError."""
    if parent in records:
        raise UsageError(f"{parent} is a joined node itself, and takes no nodes below it.")
    tree = await edges(_management(record))
    if parent not in tree.present:
        raise StateError(f"No node named {parent!r} is there (./canopy tree lists them).")
    users = await joined_users.existing(ManagementApi(_management(record)))
    taken = {*records, *tree.registered, *tree.present, *users}
    if name is None:
        return next(free for free in map("room{}".format, itertools.count(1)) if free not in taken)
    try:
        check_node_name(name)
    except BadName as error:
        raise UsageError(f"--name: {error}") from error
    if name in records:
        raise StateError(
            f"Node {name!r} has a token; for a new one first: ./canopy node-token revoke {name}"
        )
    if name in users:
        user = ManagementApi(_management(record)).prefix.outside(joined_user(name))
        raise StateError(
            f"The broker has a user {user} that was not made here: choose another name, or "
            f"rabbitmqctl delete_user {user}"
        )
    if name in taken:
        raise StateError(f"A node named {name!r} is there already; choose another name.")
    return name


def _token(
    record: Record, name: str, model: str, parent: str, urls: list[str], expires: float | None
) -> JoinToken:
    return JoinToken(
        name=name,
        urls=tuple(urls),
        model=model,
        model_argument=record["asked"][model],
        engine=record["engine"],
        parent=parent,
        version=VERSION,
        expires=expires,
        task=record.get("task", "auto"),
        policy=record["policy"] or "",
        upstream=record["upstream"] or "",
        upstream_model=record["upstream_model"] or "",
    )


@click.command("list")
@options.as_json
def list_tokens(as_json: bool) -> None:
    """List the tokens that are valid: for which node, where it hangs, last use, expiry."""
    home = homes.read()
    records = node_tokens.read(home)
    connected = _connected(home)
    tokens = [_describe(records[name], connected) for name in sorted(records)]
    if as_json:
        print(json.dumps({"tokens": tokens}))
        return
    if not tokens:
        print("no tokens; ./canopy node-token create makes one", file=sys.stderr)
    for token in tokens:
        expires = "never expires"
        if token["expires"] is not None:
            expires = time.strftime("expires %Y-%m-%d %H:%M", time.localtime(token["expires"]))
        used = _last_use(token)
        print(f"{token['name']:<16} {token['model']} below {token['parent']}, {expires}, {used}")


def _connected(home: Home) -> dict[str, str] | None:
    """The joined nodes that are connected now, by host; None where nothing runs to ask."""
    record = instance.read(home)
    if record is None or not record["management"]:
        return None
    connected = _run(joined_users.connected(ManagementApi(record["management"])))
    node_tokens.use(home, connected)
    return connected


def _describe(record: TokenRecord, connected: dict[str, str] | None) -> dict[str, Any]:
    described: dict[str, Any] = msgspec.to_builtins(record)
    del described["password_hash"]
    described["connected"] = record.name in connected if connected is not None else None
    if connected and record.name in connected:
        described["last_host"] = connected[record.name]
    return described


def _last_use(token: dict[str, Any]) -> str:
    if token["connected"]:
        return f"connected from {token['last_host']}"
    if token["last_used"] is None:
        return "never used"
    return f"used {moments.ago(time.time() - token['last_used'])} from {token['last_host']}"


@click.command("revoke")
@click.argument("name")
@options.as_json
def revoke(name: str, as_json: bool) -> None:
    """End a token: the broker closes the node's connections at once.

    NAME is the node's, as `node-token list` prints it. Jobs that run there go on elsewhere.
    """
    home = homes.read()
    record = instance.running(home)
    with audit.recorded("revoke token", name), node_tokens.changing(home) as records:
        if name not in records:
            raise StateError(f"Node {name!r} has no token (./canopy node-token list).")
        _run(joined_users.delete(ManagementApi(_management(record)), name))
        del records[name]
    if as_json:
        print(json.dumps({"name": name, "revoked": True}))
    else:
        print(f"revoked: node {name} is no longer let in")


def _management(record: Record) -> str:
    """Raises SettingError."""
    url: str = record["management"]
    if not url:
        raise SettingError(
            "Tokens are users of the broker, made through RabbitMQ's management API: set "
            "CANOPY_MANAGEMENT_URL to that of an administrator, and start Canopy again."
        )
    return url


def _run(work: Coroutine[Any, Any, T]) -> T:
    try:
        return asyncio.run(work)
    except ManagementError as error:
        raise UnreachableError(str(error)) from error
    except NameTaken as error:
        raise StateError(f"{error}; choose another name.") from error
