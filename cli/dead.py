"""`dead list|show|replay|drop`: the jobs that were given up on, and what else was put aside."""

import asyncio
import json
import logging
import os
import time
import uuid
from collections.abc import AsyncIterator, Callable, Coroutine
from contextlib import aclosing, asynccontextmanager
from typing import Annotated, Any, TypeVar

import structlog
import typer

from broker import dead
from broker.amqp import AmqpSession
from broker.client import Client, NoTree, Unavailable
from broker.dead import Letter
from broker.session import BrokerError, Session
from broker.stream import Stream
from broker.wire import Delta, Failed, Job
from cli.errors import CliError
from cli.tree import broker_addresses

CONNECT_SECONDS = 10.0

T = TypeVar("T")
LetterId = Annotated[str, typer.Argument(metavar="ID", help="As ./canopy dead list shows it.")]
AsJson = Annotated[bool, typer.Option("--json", help="Print JSON, for programs.")]

group = typer.Typer(help="Dead letters: jobs that were given up on.", no_args_is_help=True)


def add_to(app: typer.Typer) -> None:
    """Adds the commands to the command line."""
    group.command("list")(list_letters)
    for command in (show, replay, drop):
        group.command()(command)
    app.add_typer(group, name="dead")


def list_letters(as_json: AsJson = False) -> None:
    """What is there, oldest first."""
    letters = _run(_with_letters(lambda found: [describe(letter) for letter in found]))
    if as_json:
        print(json.dumps({"letters": letters}))
        return
    for line in table(letters):
        print(line)


def show(letter_id: LetterId) -> None:
    """All of one letter: headers and content."""
    print(_run(_with_letters(lambda found: full(_find(found, letter_id)))))


def replay(letter_id: LetterId) -> None:
    """Ask its question anew and print the answer as it comes; the letter is dropped when that succeeds."""
    _run(_replay(letter_id))


def drop(
    ids: Annotated[
        list[str] | None, typer.Argument(metavar="ID...", help="As ./canopy dead list shows them.")
    ] = None,
    everything: Annotated[bool, typer.Option("--all", help="Drop all that are there now.")] = False,
) -> None:
    """Remove letters for good."""
    if bool(ids) == everything:
        raise CliError("Say which: ./canopy dead drop ID..., or --all", code=2)
    print(f"dropped {_run(_with_letters(lambda found: _drop(found, ids)))}")


# ---- letters as values and lines


def describe(letter: Letter) -> dict[str, Any]:
    """What `list` says of a letter. `when`: Unix seconds."""
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
    """The letters as aligned lines with a head; the reason comes last, as long as it is."""
    if not letters:
        return ["No dead letters."]
    columns = ("id", "when", "model", "user", "node", "reason")
    rows = [columns, *([_cell(name, letter[name]) for name in columns] for letter in letters)]
    widths = [max(len(row[column]) for row in rows) for column in range(len(columns) - 1)]
    return [
        "  ".join([*(f"{row[i]:<{width}}" for i, width in enumerate(widths)), row[-1]])
        for row in rows
    ]


def full(letter: Letter) -> str:
    """Everything about a letter, for reading. What is no text is shown escaped."""
    head = [f"{'id':<10} {letter.id}"]
    told = {**letter.headers, "at": letter.at}
    head += [
        f"{name:<10} {_cell('when' if name == 'at' else name, value)}"
        for name, value in told.items()
    ]
    body = letter.delivery.body
    try:
        content = json.dumps(json.loads(body), indent=2, ensure_ascii=False)
    except ValueError:
        content = repr(body)
    return "\n".join([*head, "", content])


def _cell(name: str, value: object) -> str:
    """One field on one line, without control characters: it may come from anybody."""
    if name == "when" and isinstance(value, int | float):
        return time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(value))
    text = ", ".join(map(str, value)) if isinstance(value, list) else str(value or "-")
    return "".join(letter if letter.isprintable() else " " for letter in text)


# ---- the queue


async def _with_letters(use: Callable[[list[Letter]], T]) -> T:
    async with _session() as session:
        return use(await dead.take(session))


def _find(letters: list[Letter], letter_id: str) -> Letter:
    for letter in letters:
        if letter.id == letter_id:
            return letter
    raise CliError(f"There is no dead letter {letter_id!r} (./canopy dead list shows them)")


def _drop(letters: list[Letter], ids: list[str] | None) -> int:
    """Drops those, or all; none if one of them is not there."""
    for letter_id in ids or []:
        _find(letters, letter_id)
    chosen = [letter for letter in letters if not ids or letter.id in ids]
    for letter in chosen:
        letter.drop()
    return len(chosen)


async def _replay(letter_id: str) -> None:
    """Holds the letter while its job runs, so that nobody else replays it; a failure gives it back."""
    async with _session() as session:
        letters = await dead.take(session)
        letter = _find(letters, letter_id)
        if letter.job is None:
            raise CliError(
                f"{letter_id} is not a job ({letter.reason}): it can only be shown and dropped"
            )
        for other in letters:
            if other is not letter:
                other.give_back()
        await _answer(dead.to_replay(letter.job, uuid.uuid4().hex, time.time()))
        letter.drop()


async def _answer(job: Job) -> None:
    """Submits the job and prints its answer. Raises CliError when it fails."""
    # What the client logs is for a service; here its failures are told by the command.
    structlog.configure(wrapper_class=structlog.make_filtering_bound_logger(logging.CRITICAL))
    client = Client(broker_addresses()[0], queue_type=_queue_type())
    await client.start()
    try:
        async with asyncio.timeout(CONNECT_SECONDS):
            while not client.connected:
                await client.changed()
        async with aclosing(await client.submit(job)) as stream:
            await _print(stream)
    except TimeoutError as error:
        raise CliError("The broker does not answer.") from error
    except NoTree as error:
        raise CliError(
            f"There is no tree of the model {job.model!r} now; the letter stays."
        ) from error
    except Unavailable as error:
        raise CliError(f"{error}; the letter stays.") from error
    finally:
        await client.stop()


async def _print(stream: Stream) -> None:
    async for frame in stream:
        if isinstance(frame, Delta):
            print(frame.text, end="", flush=True)
        if isinstance(frame, Failed):
            print()
            raise CliError(f"It failed again: {frame.message}; the letter stays.")
    print()


@asynccontextmanager
async def _session() -> AsyncIterator[Session]:
    session = await AmqpSession.open(broker_addresses()[0], "canopy dead", queue_type=_queue_type())
    try:
        yield session
    finally:
        await session.close()


def _queue_type() -> str:
    return os.environ.get("CANOPY_QUEUE_TYPE") or "classic"


def _run(work: Coroutine[Any, Any, T]) -> T:
    try:
        return asyncio.run(work)
    except BrokerError as error:
        raise CliError(str(error)) from error
