"""`user`: accounts, made and changed by the API's own program, whether the instance runs or not."""

from typing import NoReturn

import click

from cli import home as homes
from cli import instance, options
from cli.home import become_module

ROLES = ("user", "staff", "administrator")

_name = click.argument("name")
_role_help = "staff see and change the tree; an administrator may do everything."


@click.command("create")
@_name
@click.option(
    "--role", type=click.Choice(ROLES), default="user", show_default=True, help=_role_help
)
@click.option("--password", is_flag=True, help="Read a password: typed, or a line of input.")
@options.as_json
def create(name: str, role: str, password: bool, as_json: bool) -> None:
    """Make an account; print its one-time login link.

    With --password it gets a password instead, which is typed or comes from standard input, never
    from the command line: ./canopy user create ada --password < FILE
    """
    words = ["create", name, "--role", role]
    if password:
        words.append("--password")
    _become(words, as_json)


@click.command("list")
@options.as_json
def list_users(as_json: bool) -> None:
    """List all accounts."""
    _become(["list"], as_json)


@click.command("password")
@_name
@click.option("--revoke-keys", is_flag=True, help="Revoke all their API keys, too.")
@options.as_json
def password(name: str, revoke_keys: bool, as_json: bool) -> None:
    """Give somebody a new password; all their sessions end.

    It is typed, or the first line of standard input. API keys stay valid unless you say otherwise.
    """
    flags = ["--revoke-keys"] if revoke_keys else []
    _become(["password", name, *flags], as_json)


@click.command("disable")
@_name
@options.as_json
def disable(name: str, as_json: bool) -> None:
    """End somebody's sessions and requests; refuse their keys.

    A running instance ends them within a second. Nothing of theirs is deleted.
    """
    _become(["disable", name], as_json)


@click.command("enable")
@_name
@options.as_json
def enable(name: str, as_json: bool) -> None:
    """Let somebody log in again, and use their keys."""
    _become(["enable", name], as_json)


@click.command("link")
@_name
@click.option("--ldap", metavar="ENTRY", help="The person's name in the directory.")
@click.option("--oidc", metavar="SUBJECT", help="The person's `sub` at the OpenID provider.")
@options.as_json
def link(name: str, ldap: str | None, oidc: str | None, as_json: bool) -> None:
    """Let a directory or a provider check who somebody is.

    Their password here is void from then on. An account is never linked by its name: this is how
    one that exists becomes a directory's.
    """
    words = ["link", name]
    if ldap:
        words += ["--ldap", ldap]
    if oidc:
        words += ["--oidc", oidc]
    _become(words, as_json)


@click.command("unlink")
@_name
@options.as_json
def unlink(name: str, as_json: bool) -> None:
    """End somebody's links to a directory or a provider.

    The account has no password then: ./canopy user password gives it one.
    """
    _become(["unlink", name], as_json)


@click.command("unlock")
@_name
@options.as_json
def unlock(name: str, as_json: bool) -> None:
    """Let somebody try passwords again, after too many wrong ones."""
    _become(["unlock", name], as_json)


@click.command("role")
@_name
@click.argument("role", type=click.Choice(ROLES))
@options.as_json
def role(name: str, role: str, as_json: bool) -> None:
    """Change what somebody may do.

    Staff see and change the tree. An administrator may do everything, in Django's admin too.
    """
    _become(["role", name, role], as_json)


def _become(words: list[str], as_json: bool) -> NoReturn:
    home = homes.read()
    flags = []
    if as_json:
        flags.append("--json")
    record = instance.read(home)
    if record is not None:
        flags += ["--address", record["address"]]
    become_module("api", "user", *flags, *words, CANOPY_HOME=str(home.path))
