"""`backup`, `restore` and `migrate-db`, done by the API's own program."""

import os
from pathlib import Path
from typing import NoReturn

import click

from cli import home as homes
from cli import instance, lock, options, state
from cli.console import say
from cli.errors import CliError, UsageError
from cli.home import Home, become_module

TARGET = "CANOPY_TARGET_DATABASE_URL"

_file = click.argument("file", type=click.Path(dir_okay=False, path_type=Path))


@click.command()
@_file
@click.option("--force", is_flag=True, help="Replace FILE if it exists.")
@options.as_json
def backup(file: Path, force: bool, as_json: bool) -> None:
    """Write a backup to FILE, whether the instance runs or not.

    In it: the database at one moment (conversations, people, keys, settings), uploaded files, the
    secret key, and the broker's passwords and certificates. Keep it as safe as the instance itself.
    Not in it: what waits in the broker, models and logs.
    """
    home = homes.read()
    _say_what_waits(home)
    _become(home, "backup", file, force, as_json)


@click.command()
@_file
@click.option("--force", is_flag=True, help="Put aside what is here, and take the backup's place.")
@options.as_json
def restore(file: Path, force: bool, as_json: bool) -> None:
    """Restore a backup into CANOPY_HOME and its database.

    Nothing may run meanwhile, nor another instance on the same PostgreSQL database. The database
    may be another than the backup's: DATABASE_URL says which. What --force replaces is kept in
    CANOPY_HOME/replaced-TIME, except for the tables of a PostgreSQL database.
    """
    if not file.exists():
        raise UsageError(f"There is no file {file}.")
    home = homes.read()
    lock.take(home).pass_on()
    _become(home, "restore", file, force, as_json)


@click.command("migrate-db")
@click.option(
    "--to",
    "target",
    metavar="URL",
    envvar=TARGET,
    required=True,
    help="postgresql://USER@HOST/DATABASE, an empty database. With a password in it, set "
    f"{TARGET} instead: other users of this machine see the command line.",
)
@options.as_json
def migrate_db(target: str, as_json: bool) -> None:
    """Copy everything from the SQLite file to a PostgreSQL database.

    Nothing may run meanwhile. The file stays as it is, and so does a target that is not empty.
    Afterwards start with DATABASE_URL set to the same address.
    """
    home = homes.read()
    lock.take(home).pass_on()
    state.check(home)
    flags = ["--json"] if as_json else []
    variables = {"CANOPY_HOME": str(home.path), TARGET: target}
    become_module("api", "migrate-db", *flags, **variables)


def _become(home: Home, command: str, file: Path, force: bool, as_json: bool) -> NoReturn:
    flags = [*(["--force"] if force else []), *(["--json"] if as_json else [])]
    become_module("api", command, *flags, "--", str(file.absolute()), CANOPY_HOME=str(home.path))


def _say_what_waits(home: Home) -> None:
    """Jobs are in the broker, not in the backup."""
    if instance.read(home) is None and not os.environ.get("CANOPY_AMQP_URL"):
        return
    from cli import registry

    try:
        nodes = registry.read_tree()["nodes"]
    except CliError as error:
        say(f"what waits in the broker is not in the backup, and cannot be counted: {error}")
        return
    jobs = sum(node["queued"] + node["running"] for node in nodes)
    if jobs:
        say(
            f"not in the backup, jobs that wait or run now: {jobs}. After a restore chat answers, "
            "batches and stored jobs among them begin again, other requests do not"
        )
