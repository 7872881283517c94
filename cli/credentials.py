"""The private broker's users: generated once, kept readable by their owner alone, loaded at the broker's boot."""

import base64
import hashlib
import json
import os
import secrets
from collections.abc import Mapping
from pathlib import Path

USERS = ("api", "node", "admin")

_TAGS = {"api": ["monitoring"], "node": [], "admin": ["administrator"]}

# configure, write, read. `api` reaches its own reply and watch queues and the entrance; `node` the tree and its inbox.
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
    """The password of every user, and the Erlang cookie as `cookie`; made on the first start, the same ever after."""
    try:
        known = json.loads(file.read_text())
    except (OSError, ValueError):
        known = {}
    if not isinstance(known, dict):
        known = {}
    secrets_of = {
        name: str(known.get(name) or secrets.token_urlsafe(24)) for name in (*USERS, "cookie")
    }
    if secrets_of != known:
        write_private(file, json.dumps(secrets_of, indent=1))
    return secrets_of


def password_hash(password: str, salt: bytes | None = None) -> str:
    """RabbitMQ's salted SHA-256: base64(salt + sha256(salt + password)), with a salt of 4 bytes."""
    salt = os.urandom(4) if salt is None else salt
    return base64.b64encode(salt + hashlib.sha256(salt + password.encode()).digest()).decode()


def definitions(passwords: Mapping[str, str]) -> dict[str, object]:
    """What the broker loads before it listens. A definitions file with users also means that `guest` is never made."""
    return {
        "users": [
            {
                "name": user,
                "password_hash": password_hash(passwords[user]),
                "hashing_algorithm": "rabbit_password_hashing_sha256",
                "tags": _TAGS[user],
            }
            for user in USERS
        ],
        "vhosts": [{"name": "/"}],
        "permissions": [
            {"user": user, "vhost": "/", "configure": configure, "write": write, "read": read}
            for user, (configure, write, read) in _RIGHTS.items()
        ],
    }


def write_private(file: Path, text: str) -> None:
    """Writes a file that only its owner can read, whole or not at all."""
    fresh = file.with_name(file.name + ".new")
    handle = os.open(fresh, os.O_CREAT | os.O_WRONLY | os.O_TRUNC, 0o600)
    with os.fdopen(handle, "w") as stream:
        stream.write(text)
    fresh.chmod(0o600)
    os.replace(fresh, file)
