"""Runs the jobs of dead letters again, one after the other, for the command line."""

import asyncio
import functools
import logging
import time
import uuid
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Any

import structlog

from broker import dead_changes
from broker.amqp import AmqpSession
from broker.client import Client
from broker.dead_changes import Changes
from broker.dead_letters import DeadLetters, Letter
from broker.dead_replay import Outcome, read_to_end
from broker.errors import NoTree, Unavailable
from broker.wire import Job
from cli import environment, registry
from cli.errors import StateError, UnreachableError

CONNECT_SECONDS = 10.0


@dataclass(frozen=True)
class Replay:
    """One letter's job, and how its new run ended. The letter is dropped unless it failed."""

    letter: str
    outcome: Outcome

    def document(self) -> dict[str, Any]:
        """As `--json` prints it."""
        return {
            "id": self.letter,
            "text": self.outcome.text,
            "tokens": self.outcome.tokens,
            "node": self.outcome.node,
            "error": self.outcome.error,
        }


def dead_letters() -> DeadLetters:
    """The letters of this instance's broker, or of the environment's. Raises StateError."""
    amqp_url, _ = registry.broker_addresses()
    queue_type = environment.read().queue_type
    return DeadLetters(
        functools.partial(AmqpSession.open, amqp_url, "canopy dead", queue_type=queue_type)
    )


def job_of(letter: Letter) -> Job:
    """The letter's job. Raises StateError if it is none."""
    if letter.job is None:
        raise StateError(
            f"{letter.id} is not a job ({letter.reason}): it can only be shown and dropped"
        )
    return letter.job


async def replay(
    ids: Sequence[str], changes: Changes, on_text: Callable[[str], None]
) -> list[Replay]:
    """Runs the jobs, with the changes, in the letters' order. Raises CliError, BrokerError.

    The letters are held meanwhile, so that nobody else replays them; a failure returns its letter.
    """
    replays = []
    async with dead_letters().take(ids) as letters, _connected_client() as client:
        jobs = [dead_changes.changed(job_of(letter), changes) for letter in letters]
        for letter, job in zip(letters, jobs, strict=True):
            outcome = await _run(client, job, on_text)
            if outcome.error is None:
                letter.drop()
            else:
                letter.give_back()
            replays.append(Replay(letter.id, outcome))
    return replays


async def _run(client: Client, job: Job, on_text: Callable[[str], None]) -> Outcome:
    job = dead_changes.to_replay(job, uuid.uuid4().hex, time.time())
    if job.delivered:
        on_text(job.delivered)
    try:
        outcome = await read_to_end(await client.submit(job), on_text)
    except NoTree:
        return Outcome("", 0, "", f"There is no tree of the model {job.model!r} now")
    except Unavailable as error:
        return Outcome("", 0, "", str(error))
    if outcome.error is None:
        return outcome
    return Outcome(outcome.text, outcome.tokens, outcome.node, f"It failed again: {outcome.error}")


@asynccontextmanager
async def _connected_client() -> AsyncIterator[Client]:
    # The client's log lines are for a service; here the command reports the failures.
    structlog.configure(wrapper_class=structlog.make_filtering_bound_logger(logging.CRITICAL))
    amqp_url, _ = registry.broker_addresses()
    client = Client(amqp_url, queue_type=environment.read().queue_type)
    await client.start()
    try:
        async with asyncio.timeout(CONNECT_SECONDS):
            while not client.connected:
                await client.changed()
        yield client
    except TimeoutError as error:
        raise UnreachableError("The broker does not answer.") from error
    finally:
        await client.stop()
