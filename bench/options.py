"""The command line: the option that all benchmarks share, and how one of them is run."""

import signal
import sys
from pathlib import Path

import click
import structlog

from bench.errors import BenchError
from cli.errors import first_error


def _check_folder(_: click.Context, _option: click.Parameter, file: Path | None) -> Path | None:
    """Refused before the run: afterwards its result would be lost."""
    if file is not None and not file.absolute().parent.is_dir():
        raise click.BadParameter(f"there is no folder {file.absolute().parent}")
    return file


COUNT = click.IntRange(min=1)
json_file = click.option(
    "--json",
    "json_file",
    type=click.Path(dir_okay=False, writable=True, path_type=Path),
    callback=_check_folder,
    help="Also write the result to this file.",
)


def run(command: click.Command, name: str) -> int:
    """Runs it and returns the exit status; whatever ends it, what it started is ended too."""
    structlog.configure(
        wrapper_class=structlog.make_filtering_bound_logger("warning"),
        logger_factory=structlog.PrintLoggerFactory(sys.stderr),
    )
    signal.signal(signal.SIGTERM, _exit)
    settings = {"help_option_names": ["-h", "--help"], "show_default": True}
    try:
        command(prog_name=name, **settings)
    except (BenchError, ExceptionGroup) as error:
        first = first_error(error)
        if not isinstance(first, BenchError):
            raise
        print(f"{name}: {first}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        return 130
    return 0


def _exit(*_signal: object) -> None:
    """An exception reaches every `finally`, which a signal does not."""
    sys.exit(143)
