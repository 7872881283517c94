"""Deletes what nobody can reach any more, again and again."""

import asyncio

import structlog
from django.db import DatabaseError

from api.files import store
from api.files.disk import ContentStore

log = structlog.get_logger("canopy.api")

EVERY = 600.0  # seconds


async def clean(contents: ContentStore) -> None:
    """Expired files, and contents without a row, such as those of a removed account."""
    await store.clean(contents)
    # Before the directory is read: what is stored meanwhile is too young to be removed.
    known = await store.known_contents()
    await asyncio.to_thread(contents.remove_abandoned, known, ())


async def clean_repeatedly(contents: ContentStore) -> None:
    """Never ends."""
    while True:
        try:
            await clean(contents)
        except (DatabaseError, OSError) as error:  # /readyz says so; the next round tries again
            log.warning("old files could not be deleted", reason=str(error))
        await asyncio.sleep(EVERY)
