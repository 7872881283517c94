"""`dead list|show|replay|drop`: jobs that were given up on, and messages that are no jobs."""

import asyncio
import json
import logging
import time
import uuid
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import aclosing, asynccontextmanager
from typing import Any, TypeVar

import click
import structlog

from broker import dead_letters
from broker.amqp import AmqpSession
from broker.client import Client
from broker.dead_letters import Letter
from broker.errors import NoTree, Unavailable
from broker.session import Session
from broker.stream import Stream
from broker.wire import Delta, Failed, Job
from cli import environment, options, registry
from cli.errors import ProcessError, StateError, UnreachableError, UsageError

CONNECT_SECONDS = 10.0

_COLUMNS = ("id", "when", "model", "user", "node", "reason")

T = TypeVar("T")


@click.command("list")
@options.as_json
def list_letters(as_json: bool) -> None:
    """List them, oldest first."""
    letters = registry.run(_with_letters(_describe_all))
    if as_json:
        print(json.dumps({"letters": letters}))
        return
    for line in table(letters):
        print(line)


@click.command()
@click.argument("letter_id", metavar="ID")
def show(letter_id: str) -> None:
    """Show a letter's headers and content."""

    def show_one(letters: list[Letter]) -> str:
        return full_text(_find(letters, letter_id))

    print(registry.run(_with_letters(show_one)))


@click.command()
@click.argument("letter_id", metavar="ID")
def replay(letter_id: str) -> None:
    """Run a job again; print its answer.

    The letter is dropped when the job succeeds.
    """
    registry.run(_replay(letter_id))


@click.command()
@click.argument("ids", nargs=-1, metavar="[ID]...")
@click.option("--all", "everything", is_flag=True, help="Drop all that are there now.")
def drop(ids: tuple[str, ...], everything: bool) -> None:
    """Remove letters for good."""
    if bool(ids) == everything:
        raise UsageError("Say which: ./canopy dead drop ID..., or --all")

    def drop_some(letters: list[Letter]) -> int:
        return drop_letters(letters, ids)

    print(f"dropped {registry.run(_with_letters(drop_some))}")


# ---- letters as values and lines


def describe(letter: Letter) -> dict[str, Any]:
    """A letter as `list --json` prints it. `when`: Unix seconds."""
    job = letter.job
    return {
        "id": letter.id,
        "when": letter.at,
        "model": job.model if job else None,
        "user": job.user if job else None,
        "node": letter.node,
        "reason": letter.reason,
    }


def table(letters: list[dict[str, Any]]) -> list[str]:
    """The letters as aligned lines below a head; the reason comes last, at full length."""
    if not letters:
        return ["No dead letters."]
    rows = [list(_COLUMNS)]
    for letter in letters:
        rows.append([_cell(name, letter[name]) for name in _COLUMNS])
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    widths[-1] = 0
    lines = []
    for row in rows:
        cells = [cell.ljust(width) for cell, width in zip(row, widths, strict=True)]
        lines.append("  ".join(cells))
    return lines


def full_text(letter: Letter) -> str:
    """A letter's headers and content, for reading. Bytes that are no JSON are escaped."""
    lines = [f"{'id':<10} {letter.id}"]
    for name, value in {**letter.headers, "at": letter.at}.items():
        kind = "when" if name == "at" else name
        lines.append(f"{name:<10} {_cell(kind, value)}")
    body = letter.delivery.body
    try:
        content = json.dumps(json.loads(body), indent=2, ensure_ascii=False)
    except ValueError:
        content = repr(body)
    return "\n".join([*lines, "", content])


def _describe_all(letters: list[Letter]) -> list[dict[str, Any]]:
    return [describe(letter) for letter in letters]


def _cell(name: str, value: object) -> str:
    """One field on one line, without control characters, as anybody may have sent it."""
    if name == "when" and isinstance(value, int | float):
        return time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(value))
    if isinstance(value, list):
        value = ", ".join(map(str, value))
    return registry.printable(value or "-")


# ---- the queue


async def _with_letters(use: Callable[[list[Letter]], T]) -> T:
    async with _session() as session:
        return use(await dead_letters.read_letters(session))


def _find(letters: list[Letter], letter_id: str) -> Letter:
    for letter in letters:
        if letter.id == letter_id:
            return letter
    raise StateError(f"There is no dead letter {letter_id!r} (./canopy dead list shows them)")


def drop_letters(letters: list[Letter], ids: Sequence[str]) -> int:
    """Drops the letters named, or all; none if one of them is not there. Returns how many."""
    for letter_id in ids:
        _find(letters, letter_id)
    chosen = [letter for letter in letters if not ids or letter.id in ids]
    for letter in chosen:
        letter.drop()
    return len(chosen)


async def _replay(letter_id: str) -> None:
    """Holds the letter while its job runs, so that nobody else replays it; a failure returns it."""
    async with _session() as session:
        letters = await dead_letters.read_letters(session)
        chosen = _find(letters, letter_id)
        if chosen.job is None:
            raise StateError(
                f"{letter_id} is not a job ({chosen.reason}): it can only be shown and dropped"
            )
        for letter in letters:
            if letter is not chosen:
                letter.give_back()
        await _print_answer(dead_letters.to_replay(chosen.job, uuid.uuid4().hex, time.time()))
        chosen.drop()


async def _print_answer(job: Job) -> None:
    """Submits the job and prints its answer. Raises CliError when it fails."""
    # The client's log lines are for a service; here the command reports the failures.
    structlog.configure(wrapper_class=structlog.make_filtering_bound_logger(logging.CRITICAL))
    amqp_url, _ = registry.broker_addresses()
    client = Client(amqp_url, queue_type=environment.read().queue_type)
    await client.start()
    try:
        async with asyncio.timeout(CONNECT_SECONDS):
            while not client.connected:
                await client.changed()
        async with aclosing(await client.submit(job)) as stream:
            await _print(stream)
    except TimeoutError as error:
        raise UnreachableError("The broker does not answer.") from error
    except NoTree as error:
        raise StateError(
            f"There is no tree of the model {job.model!r} now; the letter stays."
        ) from error
    except Unavailable as error:
        raise UnreachableError(f"{error}; the letter stays.") from error
    finally:
        await client.stop()


async def _print(stream: Stream) -> None:
    async for frame in stream:
        if isinstance(frame, Delta):
            print(frame.text, end="", flush=True)
        if isinstance(frame, Failed):
            print()
            raise ProcessError(f"It failed again: {frame.message}; the letter stays.")
    print()


@asynccontextmanager
async def _session() -> AsyncIterator[Session]:
    amqp_url, _ = registry.broker_addresses()
    queue_type = environment.read().queue_type
    session = await AmqpSession.open(amqp_url, "canopy dead", queue_type=queue_type)
    try:
        yield session
    finally:
        await session.close()
