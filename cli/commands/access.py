"""`key` and `login`: secrets for one user, made by the API's own program."""

from typing import NoReturn

import click

from cli import home as homes
from cli import instance, options
from cli.home import become_module


@click.command("create")
@click.option("--user", help="The key's owner; default: the first administrator.")
@click.option("--label", metavar="TEXT", help="What it is for.")
@click.option("--expires", metavar="WHEN", help="30d, 12h, or a date: 2027-01-31.")
@click.option("--models", metavar="A,B", help="Only these models; default: all.")
@click.option(
    "--endpoints",
    metavar="A,B",
    help="Only these: chat, completions, embeddings, batches, jobs, pages; default: all.",
)
def create_key(
    user: str | None,
    label: str | None,
    expires: str | None,
    models: str | None,
    endpoints: str | None,
) -> None:
    """Print a new API key, alone on standard output."""
    home = homes.read()
    words = _user_option(user)
    given = {"--label": label, "--expires": expires, "--models": models, "--endpoints": endpoints}
    for name, value in given.items():
        if value:
            words += [name, value]
    become_module("api", "create-key", *words, CANOPY_HOME=str(home.path))


@click.command("list")
@click.option("--user", help="Whose; default: everybody's.")
@options.as_json
def list_keys(user: str | None, as_json: bool) -> None:
    """List the API keys that are not revoked: whose, last use, expiry, scopes."""
    _become_key(["list", *_user_option(user)], as_json)


@click.command("revoke")
@click.argument("name")
@options.as_json
def revoke_key(name: str, as_json: bool) -> None:
    """Make an API key invalid; what runs for it ends within a second.

    NAME is its public part, as `key list` prints it; the whole key will do, too.
    """
    _become_key(["revoke", name], as_json)


def _become_key(words: list[str], as_json: bool) -> NoReturn:
    flags = ["--json"] if as_json else []
    become_module("api", "key", *flags, *words, CANOPY_HOME=str(homes.read().path))


@click.command()
@click.option("--user", help="Who logs in; default: the first administrator.")
def login(user: str | None) -> None:
    """Print a fresh one-time login link, alone on standard output.

    It replaces the former one.
    """
    home = homes.read()
    words = ["--address", instance.running(home)["address"], *_user_option(user)]
    become_module("api", "login-token", *words, CANOPY_HOME=str(home.path))


def _user_option(user: str | None) -> list[str]:
    if not user:
        return []
    return ["--user", user]
