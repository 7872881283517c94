"""The tokens that were made here: what they are for and when they were used; of passwords hashes.

`node-token` and the launcher write the file in turns.
"""

import contextlib
import fcntl
import json
import time
from collections.abc import Iterator, Mapping
from pathlib import Path

import msgspec

from cli.errors import StateError
from cli.home import Home
from cli.private_files import write_private


class TokenRecord(msgspec.Struct, frozen=True, kw_only=True):
    """One token that is not revoked. Times are Unix seconds."""

    name: str
    model: str
    engine: str
    parent: str
    created: float
    expires: float | None = None
    last_used: float | None = None
    last_host: str = ""
    password_hash: str = ""  # as RabbitMQ stores it, to make the user again after a restore

    def has_expired(self) -> bool:
        """Whether its user is to be deleted."""
        return self.expires is not None and self.expires <= time.time()


def file(home: Home) -> Path:
    """Where they are kept."""
    return home.path / "node-tokens.json"


def read(home: Home) -> dict[str, TokenRecord]:
    """By name. Raises StateError if the file is damaged."""
    try:
        content = file(home).read_bytes()
    except FileNotFoundError:
        return {}
    try:
        return msgspec.json.decode(content, type=dict[str, TokenRecord])
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise StateError(
            f"{file(home)} is damaged ({error}). Without it the tokens are not listed; move it "
            "away, and delete their users with rabbitmqctl delete_user."
        ) from error


@contextlib.contextmanager
def changing(home: Home) -> Iterator[dict[str, TokenRecord]]:
    """The tokens, to be changed; written at the end of the block, if it does not raise."""
    home.make()
    with (home.path / ".node-tokens.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        records = read(home)
        before = dict(records)
        yield records
        if records != before:
            write_private(file(home), json.dumps(msgspec.to_builtins(records), indent=1))


def forget(home: Home, name: str) -> None:
    """That token is no longer valid."""
    with changing(home) as records:
        records.pop(name, None)


def use(home: Home, connected: Mapping[str, str]) -> None:
    """These nodes are connected now, each from that host."""
    now = time.time()
    with changing(home) as records:
        for name, host in connected.items():
            if name in records:
                records[name] = msgspec.structs.replace(
                    records[name], last_used=now, last_host=host
                )
