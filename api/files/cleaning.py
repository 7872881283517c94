"""Deletes what nobody can reach any more, again and again."""

import asyncio

import structlog
from django.db import DatabaseError

from api.batches import store as batches
from api.files import store
from api.files.disk import ContentStore
from api.jobs import store as jobs

log = structlog.get_logger("canopy.api")

EVERY = 600.0  # seconds


async def clean(contents: ContentStore, job_days: int) -> None:
    """Expired files, old batches and jobs, and contents without a row, as of a removed account."""
    await batches.forget_old()
    await jobs.forget_old(job_days)
    await store.clean(contents)
    # Before the directory is read: what is stored meanwhile is too young to be removed.
    known, running = await store.known_contents(), await batches.open_names()
    await asyncio.to_thread(contents.remove_abandoned, known, running)


async def clean_repeatedly(contents: ContentStore, job_days: int) -> None:
    """Never ends. `job_days`: how long stored jobs are kept after their end."""
    while True:
        try:
            await clean(contents, job_days)
        except (DatabaseError, OSError) as error:  # /readyz says so; the next round tries again
            log.warning("old files could not be deleted", reason=str(error))
        await asyncio.sleep(EVERY)
