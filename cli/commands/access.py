"""`key create` and `login`: secrets for one user, made by the API's own program."""

import click

from cli import home as homes
from cli import instance
from cli.home import become_module


@click.command("create")
@click.option("--user", help="The key's owner; default: the first administrator.")
def create_key(user: str | None) -> None:
    """Print a new API key, alone on standard output."""
    home = homes.read()
    become_module("api", "create-key", *_user_option(user), CANOPY_HOME=str(home.path))


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
