"""`python -m api record ACTION TARGET DETAIL`: an entry for a command that acts by itself.

Says `began` when the entry is stored, reads the result from standard input and stores that. The
entry of a command that is killed stays as begun.
"""

import argparse
import sys

from api import database_url


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds what is recorded."""
    for name in ("action", "target", "detail"):
        parser.add_argument(name)


def run(options: argparse.Namespace) -> int:
    """Records one action; returns the exit status. The database must be migrated. Blocks."""
    import django
    from django.conf import settings

    if not has_database(settings.ENV.database_url):
        print("this machine has no database of Canopy", file=sys.stderr)
        return 1
    django.setup()
    from api.operate.audit.record import BEGAN, record_command
    from api.operate.audit.store import cut

    entry = record_command(options.action, options.target, options.detail, BEGAN)
    print("began", flush=True)
    result = sys.stdin.readline().strip()
    if result:
        entry.result = cut(result, "result")
        entry.save(update_fields=["result"])
    return 0


def has_database(url: str) -> bool:
    """False if the address is a file that is missing: SQLite would make an empty one."""
    file = database_url.file_of(url)
    return file is None or file.exists()
