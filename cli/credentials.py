"""The private broker's users: generated once, private to their owner, loaded when it boots."""

import base64
import hashlib
import json
import os
import re
import secrets
from collections.abc import Collection, Mapping
from pathlib import Path

from cli.private_files import read_object, write_private
from topology.prefix import Prefix

USERS = ("api", "node", "admin")

_TAGS = {"api": ["monitoring"], "node": [], "admin": ["administrator"]}

# configure, write, read. `api` reaches its reply and watch queues, the jobs exchange and the dead
# letters; `node` the tree, its inbox and the queue of a host's agent. Both hear the broker's own
# events. PREFIX: see topology.prefix.
_RIGHTS = {
    "api": (
        r"^PREFIX\.(reply|watch)\..*|^PREFIX\.(jobs|control|events|joined|dead)$",
        r"^(PREFIX\.(reply|watch)\..*|PREFIX\.(jobs|control|events)|amq\.default)$",
        r"^(PREFIX\.((reply|watch)\..*|events|control|joined|dead)|amq\.rabbitmq\.event)$",
    ),
    "node": (
        r"^PREFIX\.((node|inbox|standby|agent)\..*|jobs|control|events|joined|dead)$",
        r"^(PREFIX\.((node|inbox|standby|agent)\..*|jobs|control|events|dead)|amq\.default)$",
        r"^(PREFIX\.((node|inbox|standby|agent)\..*|jobs|control|events|joined)|amq\.rabbitmq\.event)$",
    ),
    "admin": (".*", ".*", ".*"),
}


def load_or_create(file: Path) -> dict[str, str]:
    """The password of every user, and the Erlang cookie as `cookie`; generated on first use."""
    stored = read_object(file)
    passwords = {}
    for name in (*USERS, "cookie"):
        passwords[name] = str(stored.get(name) or secrets.token_urlsafe(24))
    if passwords != stored:
        write_private(file, json.dumps(passwords, indent=1))
    return passwords


def password_hash(password: str, salt: bytes | None = None) -> str:
    """RabbitMQ's salted SHA-256: base64(salt + sha256(salt + password)), with a salt of 4 bytes."""
    if salt is None:
        salt = os.urandom(4)
    return base64.b64encode(salt + hashlib.sha256(salt + password.encode()).digest()).decode()


def rights(user: str, prefix: Prefix) -> dict[str, str]:
    """The patterns of names that the user may configure, write and read."""
    patterns = [right.replace("PREFIX", re.escape(prefix.name)) for right in _RIGHTS[user]]
    return dict(zip(("configure", "write", "read"), patterns, strict=True))


def definitions(
    passwords: Mapping[str, str], prefix: Prefix, ended: Collection[str] = ()
) -> dict[str, object]:
    """What the broker loads before it listens. With users of its own it creates no `guest`.

    `ended`: users that must not get in any more, each with a password that nobody knows.
    """
    users: list[dict[str, object]] = [_user(name, secrets.token_urlsafe(24), []) for name in ended]
    permissions = []
    for user in USERS:
        users.append(_user(user, passwords[user], _TAGS[user]))
        permissions.append({"user": user, "vhost": "/", **rights(user, prefix)})
    return {"users": users, "vhosts": [{"name": "/"}], "permissions": permissions}


def _user(name: str, password: str, tags: list[str]) -> dict[str, object]:
    return {
        "name": name,
        "password_hash": password_hash(password),
        "hashing_algorithm": "rabbit_password_hashing_sha256",
        "tags": tags,
    }
