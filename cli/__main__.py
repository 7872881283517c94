"""The command line. One file a group of commands; this one knows them all and says failures in one line."""

import sys

import typer

from cli import dead, lifecycle, programs, restart, tree, up
from cli.console import open_standard_streams
from cli.errors import CliError

app = typer.Typer(
    help="Canopy: a self-hosted ChatGPT-like service on RabbitMQ.\n\nStart with `./canopy up`.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)
lifecycle.add_to(app)
restart.add_to(app)
programs.add_to(app)
tree.add_to(app)
dead.add_to(app)


def main() -> int:
    """Runs the command; expected failures are one line on standard error and an exit status."""
    open_standard_streams()
    try:
        app(prog_name="canopy")
    except CliError as error:
        return up.fail(error)
    except OSError as error:
        return up.fail_os(error)
    except KeyboardInterrupt:
        return 130
    return 0


if __name__ == "__main__":
    sys.exit(main())
