"""`dead list|show|replay|edit|drop`: jobs that were given up on, and messages that are no jobs."""

import json
import sys
import time
from collections.abc import Callable, Sequence
from typing import Any, TypeVar

import click

from broker import dead_changes
from broker.dead_changes import Changes
from broker.dead_letters import Letter, describe
from cli import audit, dead_replays, options, registry
from cli.errors import ProcessError, StateError, UsageError

_NAMED = 5  # ids in one line of the audit log
_COLUMNS = ("id", "when", "model", "user", "node", "reason")

T = TypeVar("T")

_letter_id = click.argument("letter_id", metavar="ID")


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
@_letter_id
@options.as_json
def show(letter_id: str, as_json: bool) -> None:
    """Show a letter's headers and content."""
    form = as_document if as_json else full_text

    def show_one(letters: list[Letter]) -> str:
        return form(_find(letters, letter_id))

    with audit.recorded("look at a dead letter", letter_id):
        text = registry.run(_with_letters(show_one))
    print(text)


@click.command()
@click.argument("ids", nargs=-1, metavar="[ID]...")
@click.option("--all", "everything", is_flag=True, help="Run all that are there now.")
@options.as_json
def replay(ids: tuple[str, ...], everything: bool, as_json: bool) -> None:
    """Run jobs again; print the answer.

    A letter is dropped when its job succeeds. Of several, only the results are printed.
    """
    if bool(ids) == everything:
        raise UsageError("Say which: ./canopy dead replay ID..., or --all")
    if everything:
        ids = tuple(registry.run(_with_letters(_ids_of_jobs)))
    _replay(ids, Changes(), _named(ids), as_json)


@click.command()
@_letter_id
@click.option("--model", metavar="M", help="Another model.")
@click.option("--max-tokens", type=click.IntRange(1), help="Another limit of the answer.")
@click.option("--temperature", type=click.FloatRange(0, 1000), help="0: the likeliest token.")
@click.option("--prompt", metavar="TEXT", help="Another text of the last message, or prompt.")
@options.as_json
def edit(
    letter_id: str,
    model: str | None,
    max_tokens: int | None,
    temperature: float | None,
    prompt: str | None,
    as_json: bool,
) -> None:
    """Change a job, then run it again.

    Without options, your editor opens the job's model, messages and sampling as JSON.
    """

    def change_one(letters: list[Letter]) -> dict[str, Any]:
        return dead_changes.editable(dead_replays.job_of(_find(letters, letter_id)))

    if (model, max_tokens, temperature, prompt) == (None, None, None, None):
        _require_terminal()
        with audit.recorded("look at a dead letter", letter_id):
            parts = registry.run(_with_letters(change_one))
        parts = _edited(parts)
    else:
        parts = registry.run(_with_letters(change_one))
    if model is not None:
        parts["model"] = model
    if max_tokens is not None:
        parts["sampling"]["max_tokens"] = max_tokens
    if temperature is not None:
        parts["sampling"]["temperature"] = temperature
    if prompt is not None and "prompt" in parts:
        parts["prompt"] = prompt
    elif prompt is not None:
        parts["messages"][-1]["content"] = prompt
    changes = dead_changes.parse(parts)
    _replay((letter_id,), changes, f"{letter_id} with changes", as_json)


@click.command()
@click.argument("ids", nargs=-1, metavar="[ID]...")
@click.option("--all", "everything", is_flag=True, help="Drop all that are there now.")
@options.as_json
def drop(ids: tuple[str, ...], everything: bool, as_json: bool) -> None:
    """Remove letters for good."""
    if bool(ids) == everything:
        raise UsageError("Say which: ./canopy dead drop ID..., or --all")

    def drop_some(letters: list[Letter]) -> int:
        return drop_letters(letters, ids)

    with audit.recorded("drop dead letters", _number(ids), _named(ids)) as entry:
        dropped = registry.run(_with_letters(drop_some))
        entry.result = f"dropped {dropped}"
    if as_json:
        print(json.dumps({"dropped": dropped}))
    else:
        print(f"dropped {dropped}")


# ---- letters as values and lines


def table(letters: list[dict[str, Any]]) -> list[str]:
    """The letters as aligned lines below a header; the reason comes last, in full."""
    if not letters:
        return ["No dead letters."]
    rows = [list(_COLUMNS)]
    for letter in letters:
        rows.append([_cell(name, letter[name]) for name in _COLUMNS])
    lines = [""] * len(rows)
    for column in range(len(_COLUMNS) - 1):
        width = max(len(row[column]) for row in rows)
        for number, row in enumerate(rows):
            lines[number] += row[column].ljust(width) + "  "
    return [line + row[-1] for line, row in zip(lines, rows, strict=True)]


def full_text(letter: Letter) -> str:
    """A letter's headers and content, for reading. Bytes that are no JSON are escaped."""
    lines = [f"{'id':<10} {letter.id}"]
    headers = {**letter.headers, "at": letter.at}
    for name, value in headers.items():
        kind = name
        if name == "at":
            kind = "when"
        lines.append(f"{name:<10} {_cell(kind, value)}")
    body = letter.delivery.body
    try:
        content = json.dumps(json.loads(body), indent=2, ensure_ascii=False)
    except ValueError:
        content = repr(body)
    return "\n".join(lines) + f"\n\n{content}"


def as_document(letter: Letter) -> str:
    """The same as JSON; a body that is no JSON is one text, with escapes."""
    body: object
    try:
        body = json.loads(letter.delivery.body)
    except ValueError:
        body = letter.delivery.body.decode(errors="backslashreplace")
    return json.dumps({**describe(letter), "content": body})


def _describe_all(letters: list[Letter]) -> list[dict[str, Any]]:
    return [describe(letter) for letter in letters]


def _ids_of_jobs(letters: list[Letter]) -> list[str]:
    return [letter.id for letter in letters if letter.job is not None]


def _cell(name: str, value: object) -> str:
    """One field on one line, without control characters, as anybody may have sent it."""
    if name == "when" and isinstance(value, int | float):
        return time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(value))
    if isinstance(value, list):
        value = ", ".join(map(str, value))
    return registry.printable(value or "-")


# ---- the queue


async def _with_letters(use: Callable[[list[Letter]], T]) -> T:
    async with dead_replays.dead_letters().all() as letters:
        return use(letters)


def _find(letters: list[Letter], letter_id: str) -> Letter:
    for letter in letters:
        if letter.id == letter_id:
            return letter
    raise StateError(f"There is no dead letter {letter_id!r} (./canopy dead list shows them)")


def drop_letters(letters: list[Letter], ids: Sequence[str]) -> int:
    """Drops the named letters, or all; none at all if one is missing. Returns how many."""
    for letter_id in ids:
        _find(letters, letter_id)
    chosen = [letter for letter in letters if not ids or letter.id in ids]
    for letter in chosen:
        letter.drop()
    return len(chosen)


# ---- running again


def _replay(ids: Sequence[str], changes: Changes, detail: str, as_json: bool) -> None:
    """Prints the answer of a single job, the results of several. Raises ProcessError.

    `detail`: for the audit log.
    """
    with audit.recorded("replay dead letters", _number(ids), detail) as entry:
        replays = _run_again(ids, changes, as_json)
        entry.result = f"answered {len(replays)}"


def _run_again(ids: Sequence[str], changes: Changes, as_json: bool) -> list[dead_replays.Replay]:
    streams = len(ids) == 1 and not as_json

    def on_text(text: str) -> None:
        if streams:
            print(text, end="", flush=True)

    replays = registry.run(dead_replays.replay(ids, changes, on_text))
    failed = [replay for replay in replays if replay.outcome.error is not None]
    if as_json:
        print(json.dumps({"replays": [replay.document() for replay in replays]}))
    elif streams:
        print()
    else:
        for replay in replays:
            print(_result_line(replay))
    if not failed:
        return replays
    if len(ids) == 1:
        raise ProcessError(f"{failed[0].outcome.error}; the letter stays.")
    raise ProcessError(f"{len(failed)} of {len(replays)} failed; their letters stay.")


def _number(ids: Sequence[str]) -> str:
    """How many, for the audit log; none are named where all are meant."""
    return str(len(ids)) if ids else "all"


def _named(ids: Sequence[str]) -> str:
    """The first ids, for the audit log."""
    named = ", ".join(ids[:_NAMED])
    if len(ids) > _NAMED:
        return f"{named} and {len(ids) - _NAMED} more"
    return named


def _result_line(replay: dead_replays.Replay) -> str:
    outcome = replay.outcome
    if outcome.error is not None:
        return f"{replay.letter}  failed: {registry.printable(outcome.error)}"
    return f"{replay.letter}  answered: {outcome.tokens} tokens on {outcome.node}"


def _is_terminal() -> bool:
    return sys.stdin.isatty()


def _require_terminal() -> None:
    """Raises UsageError if no editor can be used."""
    if not _is_terminal():
        raise UsageError("Say what to change: --model, --max-tokens, --temperature or --prompt")


def _edited(parts: dict[str, Any]) -> dict[str, Any]:
    """The parts after the user has changed them in an editor. Raises UsageError, StateError."""
    text = click.edit(json.dumps(parts, indent=2, ensure_ascii=False), extension=".json")
    if text is None:
        raise StateError("Nothing was changed; the letter stays. (dead replay runs it as it is)")
    try:
        edited = json.loads(text)
    except ValueError as error:
        raise UsageError(f"That is not JSON: {error}; the letter stays.") from error
    if not isinstance(edited, dict):
        raise UsageError("That is not a JSON object; the letter stays.")
    return edited
