"""The launcher's part for tokens: notes when they are used, and ends those that have expired."""

import asyncio
from collections.abc import Callable

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


async def look(home: Home, api: ManagementApi, say: Callable[[str], None]) -> None:
    """Once. Raises CliError, ManagementError, OSError.

    A command may hold the list for seconds, so it is changed in a thread.
    """
    records = node_tokens.read(home)
    for record in records.values():
        if record.has_expired() and await asyncio.to_thread(_end, home, api, record):
            say(f"the token of node {record.name} has expired")
    if records:
        connected = await joined_users.connected(api)
        await asyncio.to_thread(node_tokens.use, home, connected)


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
