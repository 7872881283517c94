"""The private broker's users: generated once, private to their owner, loaded when it boots."""

import base64
import hashlib
import json
import os
import secrets
from collections.abc import Mapping
from pathlib import Path
from typing import Any

USERS = ("api", "node", "admin")

_TAGS = {"api": ["monitoring"], "node": [], "admin": ["administrator"]}

# configure, write, read. `api` reaches its reply and watch queues and the jobs exchange; `node` the
# tree and its inbox.
_RIGHTS = {
    "api": (
        r"^canopy\.(reply|watch)\..*|^canopy\.(jobs|control|events|dead)$",
        r"^(canopy\.(reply|watch)\..*|canopy\.(jobs|control|events)|amq\.default)$",
        r"^canopy\.((reply|watch)\..*|events|control)$",
    ),
    "node": (
        r"^canopy\.((node|inbox|standby)\..*|jobs|control|events|dead)$",
        r"^(canopy\.((node|inbox|standby)\..*|jobs|control|events|dead)|amq\.default)$",
        r"^(canopy\.((node|inbox|standby)\..*|jobs|control|events)|amq\.rabbitmq\.event)$",
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


def read_object(file: Path) -> dict[str, Any]:
    """A JSON object; empty where the file is missing or broken."""
    try:
        document = json.loads(file.read_text())
    except (OSError, ValueError):
        return {}
    return document if isinstance(document, dict) else {}


def password_hash(password: str, salt: bytes | None = None) -> str:
    """RabbitMQ's salted SHA-256: base64(salt + sha256(salt + password)), with a salt of 4 bytes."""
    if salt is None:
        salt = os.urandom(4)
    return base64.b64encode(salt + hashlib.sha256(salt + password.encode()).digest()).decode()


def definitions(passwords: Mapping[str, str]) -> dict[str, object]:
    """What the broker loads before it listens. With users of its own it creates no `guest`."""
    users = []
    permissions = []
    for user in USERS:
        users.append(
            {
                "name": user,
                "password_hash": password_hash(passwords[user]),
                "hashing_algorithm": "rabbit_password_hashing_sha256",
                "tags": _TAGS[user],
            }
        )
        configure, write, read = _RIGHTS[user]
        permissions.append(
            {"user": user, "vhost": "/", "configure": configure, "write": write, "read": read}
        )
    return {"users": users, "vhosts": [{"name": "/"}], "permissions": permissions}


def write_private(file: Path, text: str) -> None:
    """Writes a file that only its owner can read, atomically. Raises OSError."""
    fresh = file.with_name(file.name + ".new")
    handle = os.open(fresh, os.O_CREAT | os.O_WRONLY | os.O_TRUNC, 0o600)
    with os.fdopen(handle, "w") as stream:
        stream.write(text)
    fresh.chmod(0o600)
    os.replace(fresh, file)
