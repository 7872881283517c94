"""The launcher's part for tokens: notes when they are used, and ends those that have expired."""

import asyncio
from collections.abc import Callable, Iterable

from broker import joined_users
from broker.errors import ManagementError
from broker.management import ManagementApi
from cli import node_tokens
from cli.errors import CliError
from cli.home import Home
from cli.node_tokens import TokenRecord

LOOK_SECONDS = 20.0


async def watch(home: Home, management_url: str, say: Callable[[str], None]) -> None:
    """Never ends. While there is no token it reads one small file."""
    while True:
        try:
            if node_tokens.file(home).exists():
                await look(home, ManagementApi(management_url), say)
        except (CliError, ManagementError, OSError) as error:
            say(f"the nodes' tokens were not looked at: {error}")
        await asyncio.sleep(LOOK_SECONDS)


async def end_expired(home: Home, management_url: str, say: Callable[[str], None]) -> None:
    """Before anything of this instance serves: what has expired while nothing ran.

    Without the management API, or while it does not answer, the operator is told who is let in.
    """
    try:
        expired = [token for token in node_tokens.read(home).values() if token.has_expired()]
        if not expired:
            return
        if management_url:
            await _end_all(home, ManagementApi(management_url), expired, say)
            return
        reason = "set CANOPY_MANAGEMENT_URL"
    except (CliError, ManagementError, OSError) as error:
        reason = str(error)
    say(f"nodes whose tokens have expired are still let in: {reason}")


async def reconcile(home: Home, api: ManagementApi, vhost: str, say: Callable[[str], None]) -> None:
    """Makes the users of an instance's own broker those of its tokens: a restore brings back the
    list, and not the broker's data. Raises CliError, ManagementError.
    """
    records = node_tokens.read(home)
    present = await joined_users.existing(api)
    for name in sorted(present.difference(records)):
        await joined_users.delete(api, name)
        say(f"node {name} is no longer let in: its token is not among those of this instance")
    for name in sorted(set(records).difference(present)):
        token = records[name]
        if not token.password_hash:
            say(
                f"the broker does not know the token of node {name} any more: "
                f"./canopy node-token revoke {name}, then create another"
            )
            continue
        await joined_users.create(api, name, token.model, token.password_hash, vhost, hashed=True)
        say(f"the token of node {name} is valid again")


async def look(home: Home, api: ManagementApi, say: Callable[[str], None]) -> None:
    """Once. Raises CliError, ManagementError, OSError.

    A command may hold the list for seconds, so it is changed in a thread.
    """
    records = node_tokens.read(home)
    await _end_all(home, api, [token for token in records.values() if token.has_expired()], say)
    if records:
        connected = await joined_users.connected(api)
        await asyncio.to_thread(node_tokens.use, home, connected)


async def _end_all(
    home: Home, api: ManagementApi, expired: Iterable[TokenRecord], say: Callable[[str], None]
) -> None:
    for token in expired:
        if await asyncio.to_thread(_end, home, api, token):
            say(f"the token of node {token.name} has expired")


def _end(home: Home, api: ManagementApi, expired: TokenRecord) -> bool:
    """Deletes its user; False if a command has ended or replaced the token meanwhile.

    In a thread, because a command that makes a token may hold the file for seconds.
    """
    with node_tokens.changing(home) as records:
        current = records.get(expired.name)
        if current is None or current.created != expired.created:
            return False
        asyncio.run(joined_users.delete(api, expired.name))
        del records[expired.name]
        return True
