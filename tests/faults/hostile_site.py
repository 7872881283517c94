"""An instance with innocent requests, which something hostile happens beside."""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import urlsplit

import httpx

from tests.faults.hostile import HostileRow
from tests.faults.innocents import Innocents
from tests.instance import Instance

UNDISTURBED = 3  # answers a reader, before a fault
BESIDE = 3  # at least, beside it
ATTACK_SECONDS = 240.0  # for one request: on a loaded machine a long prompt takes minutes


@dataclass(frozen=True)
class Site:
    """An instance, and who asks it: `stranger` is another user than the innocent ones."""

    instance: Instance
    innocents: Innocents
    stranger: httpx.AsyncClient
    model: str
    folder: Path  # which the home is in


Attack = Callable[[Site], Awaitable[None]]


async def open_site(instance: Instance, model: str, tokens: int) -> AsyncIterator[Site]:
    limits = httpx.Limits(max_connections=None)
    bearer = {"Authorization": f"Bearer {instance.key('stranger')}"}
    async with (
        Innocents(instance.url, instance.key(), model, tokens) as innocents,
        httpx.AsyncClient(
            base_url=instance.url, headers=bearer, limits=limits, timeout=ATTACK_SECONDS
        ) as stranger,
    ):
        yield Site(instance, innocents, stranger, model, instance.home.parent)


async def connect(site: Site) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
    address = urlsplit(site.instance.url)
    return await asyncio.open_connection(address.hostname, address.port)


async def beside(site: Site, attack: Attack, record: Callable[[HostileRow], None]) -> HostileRow:
    """Innocent requests, first alone and then beside the attack."""
    quiet = await site.innocents.ask(UNDISTURBED)
    struck = await site.innocents.beside(attack(site), BESIDE)
    row = HostileRow(attack.__name__, (attack.__doc__ or "").rstrip("."), struck, quiet)
    record(row)
    assert quiet.lost == []
    assert struck.lost == []
    return row


def nobody_was_refused(row: HostileRow) -> bool:
    """Only a full disk is a reason not to take a request."""
    return row.beside.refused == [] and row.quiet.refused == []
