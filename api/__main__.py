"""The API process's command line: `python -m api serve | migrate | login-token | create-key`."""

import argparse
import os
import sys


def main() -> int:
    """Parses the command line, then runs one command."""
    parser = argparse.ArgumentParser(prog="python -m api", description=__doc__)
    commands = parser.add_subparsers(dest="command", required=True)
    serve_parser = commands.add_parser("serve", help="serve HTTP until SIGTERM")
    serve_parser.add_argument("--host", default="127.0.0.1")
    serve_parser.add_argument("--port", type=int, default=8000)
    serve_parser.add_argument("--processes", type=int, default=1)
    serve_parser.add_argument("--fd", type=int, help="number of an open, bound socket, instead of --host and --port")
    commands.add_parser("migrate", help="create or update the database")
    commands.add_parser("login-token", help="print a one-time login token of the first administrator")
    key_parser = commands.add_parser("create-key", help="print a new API key")
    key_parser.add_argument("--user", help="whose key; default: the first administrator")
    return run(parser.parse_args())


def run(options: argparse.Namespace) -> int:
    """Runs the command; returns the exit status."""
    os.umask(0o077)  # the database holds conversations and password hashes
    os.environ.setdefault("DJANGO_SETTINGS_MODULE", "api.settings")
    match options.command:
        case "serve":
            return serve(options)
        case "migrate":
            return migrate()
        case "login-token":
            return login_token()
        case _:
            return create_key(options.user)


def serve(options: argparse.Namespace) -> int:
    """Serves until it is stopped."""
    if options.fd is not None and options.processes > 1:
        print("--fd is for one process: several cannot finish in order", file=sys.stderr)
        return 2
    from api.server import serve as server

    server.serve(options.host, options.port, options.processes, options.fd)
    return 0


def migrate() -> int:
    """Brings the database to the newest schema."""
    import django
    from django.core.management import call_command

    django.setup()
    call_command("migrate", verbosity=0, interactive=False)
    call_command("clearsessions")
    return 0


def login_token() -> int:
    """Prints a one-time login token of the first administrator, who is created if there is none."""
    import django

    django.setup()
    from api.accounts import tokens

    print(tokens.create(tokens.first_administrator()))
    return 0


def create_key(username: str | None) -> int:
    """Prints a new API key, alone on standard output. Works before the first start, too."""
    migrate()
    from api.accounts import keys, tokens
    from api.accounts.models import User

    user = tokens.first_administrator() if username is None else User.objects.filter(username=username).first()
    if user is None:
        print(f"there is no user {username!r}", file=sys.stderr)
        return 1
    print(keys.create(user))
    return 0


if __name__ == "__main__":
    sys.exit(main())
