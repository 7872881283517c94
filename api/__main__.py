"""The API's programs: serve, migrate, login-token, create-key, user, and operators' commands."""

import argparse
import os
import sys
import threading
from collections.abc import Callable
from typing import TYPE_CHECKING

from api import database_url, environment
from api.accounts import commands as user_commands
from api.accounts import key_commands
from api.data import commands as data_commands
from api.operate import commands as operator_commands
from api.operate import tree_commands
from api.operate.audit import commands as audit_commands
from api.operate.history import commands as history_commands
from api.operate.logs import commands as log_commands
from api.operate.usage import commands as usage_commands
from api.plans import commands as plan_commands

if TYPE_CHECKING:
    from api.accounts.models import User


DATABASE_SECONDS = 5.0  # for the check before a server starts


def main() -> int:
    """Parses the command line, then runs one command."""
    parser = argparse.ArgumentParser(prog="python -m api", description=__doc__)
    commands = parser.add_subparsers(dest="command", required=True)
    serve_parser = commands.add_parser("serve", help="serve HTTP until SIGTERM")
    serve_parser.add_argument("--host", default="127.0.0.1")
    serve_parser.add_argument("--port", type=int, default=8000)
    serve_parser.add_argument(
        "--fd", type=int, help="number of an open, bound socket, instead of --host and --port"
    )
    commands.add_parser("migrate", help="create or update the database")
    token_parser = commands.add_parser("login-token", help="print a one-time login token")
    token_parser.add_argument("--user", help="whose login; default: the first administrator")
    token_parser.add_argument("--address", help="print a link to this address instead: http://…")
    key_commands.add_arguments(commands)
    user_commands.add_arguments(commands.add_parser("user", help="make and change accounts"))
    plan_commands.add_arguments(commands.add_parser("plan", help="what users may ask for"))
    usage_commands.add_arguments(commands.add_parser("usage", help="who has used how much"))
    history_commands.add_arguments(commands.add_parser("history", help="figures over time"))
    log_commands.add_arguments(commands.add_parser("logs", help="the last lines of logs"))
    audit_commands.add_arguments(commands.add_parser("record", help="an entry of the audit log"))
    data_commands.add_arguments(commands)
    operator_commands.add_arguments(commands)
    tree_commands.add_arguments(commands)
    try:
        return run(parser.parse_args())
    except (environment.BadEnvironment, PermissionError) as error:
        place = f" ({error.filename})" if isinstance(error, PermissionError) else ""
        print(f"{getattr(error, 'strerror', None) or error}{place}", file=sys.stderr)
        return 1


def run(options: argparse.Namespace) -> int:
    """Runs the command; returns the exit status."""
    os.umask(0o077)  # the database has conversations and password hashes
    environment.use_settings()
    if options.command == "serve":
        return serve(options)
    if options.command == "logs":
        return log_commands.run(options)
    from django.db import DatabaseError

    from api.storage.schema import UnfitDatabase

    try:
        return use_database(options)
    except UnfitDatabase as error:
        print(error, file=sys.stderr)
        return 1
    except DatabaseError as error:  # such as a full disk
        print(
            f"the database{database_file()} refuses: {' '.join(str(error).split())}",
            file=sys.stderr,
        )
        return 1


def database_file() -> str:
    """The file of an SQLite database, in brackets; other databases' errors say where they are."""
    file = database_url.file_of(environment.current().database_url)
    return f" ({file})" if file else ""


def use_database(options: argparse.Namespace) -> int:
    """Runs one of the short commands; returns the exit status."""
    if options.command in data_commands.COMMANDS:
        return data_commands.run(options)
    match options.command:
        case "migrate":
            return migrate()
        case "login-token":
            return login_token(options.user, options.address)
        case "create-key":
            return create_key(options)
        case "record":
            return audit_commands.run(options)
        case _:
            migrate()  # it may be the first command of all
            return operate(options)


def operate(options: argparse.Namespace) -> int:
    """Runs a command for operators; returns the exit status."""
    if options.command in tree_commands.COMMANDS:
        return tree_commands.run(options)
    return COMMANDS.get(options.command, operator_commands.run)(options)


COMMANDS: dict[str, Callable[[argparse.Namespace], int]] = {
    "user": user_commands.run,
    "key": key_commands.run,
    "plan": plan_commands.run,
    "usage": usage_commands.run,
    "history": history_commands.run,
}


def serve(options: argparse.Namespace) -> int:
    """Serves until it is stopped."""
    from api.server import serve as server

    environment.use_settings(options.port)
    problem = database_problem()
    if problem is not None:
        print(problem, file=sys.stderr)
        return 1
    try:
        server.serve(options.host, options.port, options.fd)
    except OSError as error:
        print(
            f"cannot listen on {options.host}, port {options.port}: {error.strerror or error}",
            file=sys.stderr,
        )
        return 1
    return 0


def database_problem() -> str | None:
    """Why this code must not serve the database; None if it may.

    A database that does not answer in time is no reason not to start: /readyz says so.
    """
    import django

    django.setup(set_prefix=False)
    found: list[str] = []
    look = threading.Thread(target=_check_schema, args=(found,), daemon=True)
    look.start()
    look.join(DATABASE_SECONDS)
    return found[0] if found else None


def _check_schema(problems: list[str]) -> None:
    from django.db import DatabaseError, connections

    from api.storage import schema

    try:
        schema.check_current()
    except schema.UnfitDatabase as error:
        problems.append(str(error))
    except DatabaseError:
        return
    finally:
        connections.close_all()  # this thread's


def migrate() -> int:
    """Brings the database to the newest schema."""
    import django
    from django.core.management import call_command

    django.setup()
    from api.storage import schema

    schema.migrate(lambda text: print(text, file=sys.stderr, flush=True))
    call_command("clearsessions")
    from django.utils import timezone

    from api.accounts import lockout

    lockout.forget_old_logins(timezone.now())
    return 0


def login_token(username: str | None = None, address: str | None = None) -> int:
    """Prints a one-time login token, or with `address` the link, alone on standard output.

    The first administrator is created if there is none.
    """
    import django

    django.setup()
    from api.accounts import tokens

    user = _user(username)
    if user is None:
        return 1
    token = tokens.create(user)
    if address:
        print(f"{address}/login?token={token}")
    else:
        print(token)
    return 0


def create_key(options: argparse.Namespace) -> int:
    """Prints a new API key, alone on standard output."""
    migrate()  # it may be the first command of all
    user = _user(options.user)
    if user is None:
        return 1
    return key_commands.create(options, user)


def _user(username: str | None) -> "User | None":
    """The active user of that name, or the first administrator. Prints why, if it returns None."""
    from api.accounts import tokens
    from api.accounts.models import User

    if username is None:
        return tokens.first_administrator()
    user = User.objects.filter(username=username).first()
    if user is not None and user.is_active:
        return user
    state = "does not exist" if user is None else "is disabled"
    print(f"the user {username!r} {state}", file=sys.stderr)
    return None


if __name__ == "__main__":
    sys.exit(main())
