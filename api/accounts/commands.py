"""`python -m api user …`: accounts from the command line (`./canopy user`)."""

import argparse
import getpass
import json
import sys
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from api.accounts.models import User
    from api.accounts.people import Account

ROLES = ("user", "staff", "administrator")
LONGEST_PASSWORD = 4096  # characters, as at the login


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the actions below `user`."""
    parser.add_argument("--json", action="store_true", help="print JSON")
    parser.add_argument("--address", help="where the instance answers: http://…")
    actions = parser.add_subparsers(dest="action", required=True)
    create = actions.add_parser("create", help="make an account")
    create.add_argument("name")
    create.add_argument("--role", choices=ROLES, default="user")
    create.add_argument("--password", action="store_true", help="read one")
    actions.add_parser("list", help="list all accounts")
    for name in ("disable", "enable", "unlock"):
        actions.add_parser(name).add_argument("name")
    password = actions.add_parser("password")
    password.add_argument("name")
    password.add_argument("--revoke-keys", action="store_true", help="their API keys end, too")
    role = actions.add_parser("role", help="change what a user may do")
    role.add_argument("name")
    role.add_argument("role", choices=ROLES)
    link = actions.add_parser("link", help="who else checks who this is")
    link.add_argument("name")
    link.add_argument("--ldap", metavar="ENTRY", help="name in the directory")
    link.add_argument("--oidc", metavar="SUBJECT", help="subject at the provider")
    actions.add_parser("unlink", help="nobody else checks it any more").add_argument("name")


def run(options: argparse.Namespace) -> int:
    """Runs one action on a migrated database; returns the exit status."""
    from api.accounts import people

    try:
        match options.action:
            case "list":
                _print_list(people.list_accounts(), options.json)
            case "create":
                _create(options)
            case _:
                _change(options)
    except people.AccountError as error:
        print(error, file=sys.stderr)
        return 1
    return 0


def _create(options: argparse.Namespace) -> None:
    from api.accounts import people, tokens
    from api.operate.audit.record import record_command

    password = _read_password() if options.password else None
    user = people.create(options.name, options.role, password)
    record_command("user create", user.username, options.role)
    link = None
    if password is None and options.address:
        link = f"{options.address}/login?token={tokens.create(user)}"
    if options.json:
        _print_json({**people.describe(user).as_json(), "login": link})
    elif link is not None:
        print(link)
    elif password is not None:
        print(f"{user.username} is created ({options.role})")
    else:
        print(
            f"{user.username} is created ({options.role}). "
            f"Once the instance runs, ./canopy login --user {user.username} prints a login link"
        )


def _change(options: argparse.Namespace) -> None:
    from api.accounts import lockout, people
    from api.identities import commands
    from api.operate.audit.record import record_command

    user = people.find(options.name)
    match options.action:
        case "password":
            people.set_password(user, _read_password(), revoke_keys=options.revoke_keys)
            text = "has a new password, and is logged out everywhere"
            if options.revoke_keys:
                text += "; all API keys are revoked"
        case "disable":
            people.disable(user)
            text = "is disabled: sessions, keys and running requests end within a second"
        case "enable":
            people.enable(user)
            text = "may log in again"
        case "link":
            text = commands.link(user, options.ldap, options.oidc)
        case "unlink":
            text = commands.unlink(user)
        case "unlock":
            lockout.unlock(user.username)
            text = "may try passwords again, from everywhere"
        case _:
            people.set_role(user, options.role)
            text = f"has the role {options.role}"
    record_command(f"user {options.action}", user.username, getattr(options, "role", ""))
    _print_user(user, text, options.json)


def _print_user(user: "User", text: str, as_json: bool) -> None:
    from api.accounts import people

    if as_json:
        _print_json(people.describe(user).as_json())
    else:
        print(f"{user.username} {text}")


def _print_list(accounts: "list[Account]", as_json: bool) -> None:
    if as_json:
        _print_json({"users": [account.as_json() for account in accounts]})
        return
    width = max((len(account.name) for account in accounts), default=0)
    for account in accounts:
        state = "active" if account.active else "disabled"
        last_login = account.last_login or "never"
        elsewhere = "".join(f"  known to {name}" for name in account.identities)
        print(
            f"{account.name:<{width}}  {account.role:<13}  {state:<8}  "
            f"keys {account.keys:<3}  last login {last_login}{elsewhere}"
        )


def _print_json(value: dict[str, Any]) -> None:
    print(json.dumps(value))


def _read_password() -> str:
    """From the terminal, typed twice and not shown; else the first line of standard input."""
    from api.accounts.people import AccountError

    if not sys.stdin.isatty():
        password = sys.stdin.readline(LONGEST_PASSWORD + 1).rstrip("\r\n")
    else:
        password = getpass.getpass("New password: ")
        if getpass.getpass("The same again: ") != password:
            raise AccountError("the two passwords differ")
    if not 0 < len(password) <= LONGEST_PASSWORD:
        raise AccountError(f"a password has 1 to {LONGEST_PASSWORD} characters")
    return password
