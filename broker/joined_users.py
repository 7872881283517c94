"""The broker's users of joined nodes, made and deleted through the management API.

docs/joining.md says what each right is for; tests/broker/test_rights.py tries what is not granted.
"""

import re
from dataclasses import dataclass
from urllib.parse import quote

from broker.errors import NameTaken
from broker.management import ManagementApi
from topology import names
from topology.prefix import Prefix

# Two sessions of two connections: a node that reconnects may do so before the broker has noticed
# the end of its former ones.
MAX_CONNECTIONS = 4
MAX_CHANNELS = 8
HASHING = "rabbit_password_hashing_sha256"


@dataclass(frozen=True, slots=True)
class Rights:
    """Patterns of names that a user may configure, write and read."""

    configure: str
    write: str
    read: str


NOTHING = "^$"


def rights(name: str, prefix: Prefix) -> Rights:
    """It declares its inbox, binds it to what all nodes are told, and reads it and its queue."""
    inbox, queue = _exactly(names.inbox(name), prefix), _exactly(names.node(name), prefix)
    joined = _exactly(names.JOINED_EXCHANGE, prefix)
    events = _exactly(names.EVENTS_EXCHANGE, prefix)
    control = _exactly(names.CONTROL_EXCHANGE, prefix)
    return Rights(
        configure=f"^{inbox}$",
        write=f"^({inbox}|{joined}|{events})$",
        read=f"^({queue}|{inbox}|{control})$",
    )


def joined_keys(model: str) -> str:
    """Keys on JOINED_EXCHANGE: of its tree's nodes, readers, answers to operators, dead letters."""
    tree = names.tree_digest(model)
    nodes = rf"{re.escape(names.NODE_PREFIX)}[^.]+\.{tree}"
    inboxes = rf"{re.escape(names.INBOX_PREFIX)}[^.]+\.{tree}"
    replies = rf"{re.escape(names.REPLY_PREFIX)}.+"
    answers = rf"{re.escape(names.WATCH_PREFIX)}.+\.jobs"
    return f"^({nodes}|{inboxes}|{replies}|{answers}|{re.escape(names.DEAD_QUEUE)})$"


def event_keys(name: str, model: str) -> str:
    """Keys on EVENTS_EXCHANGE: its own state, as a node of that model, and its jobs."""
    state, jobs = names.joined_state_key(name, model), names.jobs_key(name)
    return f"^({re.escape(state)}|{re.escape(jobs)})$"


async def create(
    api: ManagementApi, name: str, model: str, password: str, vhost: str, *, hashed: bool = False
) -> None:
    """Makes the user of a joined node with its rights and limits.

    `hashed`: the password is RabbitMQ's salted SHA-256 of it. Raises NameTaken if there is one:
    another password would end that node. Raises ManagementError.
    """
    if name in await existing(api):
        raise NameTaken(f"the broker has a user {api.prefix.outside(names.joined_user(name))!r}")
    user, place = api.quoted(names.joined_user(name)), quote(vhost, safe="")
    secret = {"password": password}
    if hashed:
        secret = {"password_hash": password, "hashing_algorithm": HASHING}
    await api.put(f"users/{user}", {**secret, "tags": ""})
    try:
        for limit, value in (
            ("max-connections", MAX_CONNECTIONS),
            ("max-channels", MAX_CHANNELS),
        ):
            await api.put(f"user-limits/{user}/{limit}", {"value": value})
        keys = {
            names.JOINED_EXCHANGE: joined_keys(model),
            names.EVENTS_EXCHANGE: event_keys(name, model),
        }
        for exchange, pattern in keys.items():
            right = {
                "exchange": api.prefix.outside(exchange),
                "write": pattern,
                "read": NOTHING,
            }
            await api.put(f"topic-permissions/{place}/{user}", right)
        # last: until then the user reaches no virtual host
        granted = rights(name, api.prefix)
        await api.put(
            f"permissions/{place}/{user}",
            {"configure": granted.configure, "write": granted.write, "read": granted.read},
        )
    except BaseException:
        await delete(api, name)
        raise


async def delete(api: ManagementApi, name: str) -> None:
    """Deletes the user; the broker closes its connections at once. Raises ManagementError.

    Its inbox goes with its connection, but instead of that a thief may have declared a queue or an
    exchange that lasts, collects what all nodes are told, and keeps the name taken.
    """
    await api.delete(f"users/{api.quoted(names.joined_user(name))}")
    for kind in ("queues", "exchanges"):
        await api.delete(f"{kind}/{api.place}/{api.quoted(names.inbox(name))}")


async def existing(api: ManagementApi) -> set[str]:
    """The joined nodes that have a user, whoever has made it. Raises ManagementError."""
    found = set()
    for user in await api.read("users?columns=name"):
        node = names.joined_node(api.prefix.inside(str(user.get("name", ""))))
        if node:
            found.add(node)
    return found


async def connected(api: ManagementApi) -> dict[str, str]:
    """The joined nodes that are connected now, each with its host. Raises ManagementError."""
    hosts = {}
    for connection in await api.read("connections?columns=user,peer_host"):
        node = names.joined_node(api.prefix.inside(str(connection.get("user", ""))))
        if node:
            hosts[node] = str(connection.get("peer_host", ""))
    return hosts


def _exactly(name: str, prefix: Prefix) -> str:
    return re.escape(prefix.outside(name))
