"""`history`: figures by minute and hour, read by the API's own program, running or not."""

import click

from cli import home as homes
from cli import options
from cli.errors import UsageError
from cli.home import become_module


@click.command()
@click.option("--metric", default="requests", show_default=True, metavar="M")
@click.option("--by", default="all", show_default=True, metavar="G", help="model, node or user.")
@click.option("--hours", type=click.FloatRange(0.02, 2160), default=1.0, show_default=True)
@click.option("--days", type=click.FloatRange(0.1, 90), help="Instead of --hours.")
@click.option("--until", type=int, metavar="UNIX", help="Its end; default: now.")
@click.option("--step", type=int, metavar="SECONDS", help="60, 300, 900, 3600, 21600 or 86400.")
@options.as_json
@click.option("--csv", "as_csv", is_flag=True, help="Print CSV, for spreadsheets.")
def history(
    metric: str,
    by: str,
    hours: float,
    days: float | None,
    until: int | None,
    step: int | None,
    as_json: bool,
    as_csv: bool,
) -> None:
    """Show what was asked and how it went, over time.

    M: requests, failed, cancelled, tokens_in, tokens_out, wait_p50, wait_p95, wait_p99,
    service_p50, service_p95, service_p99 or utilisation. Minutes are kept for a day, hours for 90
    days; the last seconds of a running instance may be missing.
    """
    if as_json and as_csv:
        raise UsageError("Say --json or --csv, not both.")
    if days is not None:
        hours = days * 24
    words = ["--metric", metric, "--by", by, "--hours", str(hours)]
    if until is not None:
        words += ["--until", str(until)]
    if step is not None:
        words += ["--step", str(step)]
    if as_json:
        words.append("--json")
    if as_csv:
        words.append("--csv")
    become_module("api", "history", *words, CANOPY_HOME=str(homes.read().path))
