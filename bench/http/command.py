"""`bench http`: streams and API processes, each pair of numbers in its own instance."""

import asyncio
import os
from pathlib import Path

import click

from bench import harness, options, streaming
from bench.http import load
from bench.http.load import LIMIT_MS, Outcome
from bench.report import Progress, Report, Row, Table

NODES = 2
_NUMBER = click.FloatRange(min=1)
_STREAMS, _APIS = (100, 1000, 2000), (1, 2)


@click.command
@click.option("--streams", type=options.COUNT, multiple=True, default=_STREAMS, help="Repeatable.")
@click.option(
    "--apis", type=options.COUNT, multiple=True, default=_APIS, help="Processes; repeatable."
)
@click.option("--rate", type=_NUMBER, default=20.0, help="Tokens a second in each stream.")
@click.option("--seconds", type=_NUMBER, default=20.0, help="Length of the measured window.")
@click.option("--starts", type=_NUMBER, default=50.0, help="Streams started a second.")
@options.json_file
def command(
    streams: tuple[int, ...],
    apis: tuple[int, ...],
    rate: float,
    seconds: float,
    starts: float,
    json_file: Path | None,
) -> None:
    """Token streams over HTTP: how many keep up with their rate, and what they cost."""
    settings = {"rate": rate, "seconds": seconds, "starts": starts}
    result = Report("http", {**settings, "nodes": NODES, "engine": "echo"})
    progress = Progress(len(streams) * len(apis))
    rows: list[Row] = []
    for api_count in apis:
        for stream_count in streams:
            name = f"{stream_count} streams, API processes: {api_count}"
            progress.step(name)
            try:
                outcome = _measure(stream_count, api_count, rate, starts, seconds)
            except TimeoutError:
                result.notes.append(f"{name}: so far behind that nothing was measured")
                continue
            rows.append({"streams": stream_count, "APIs": api_count} | outcome.cells(rate))
    result.tables = [Table("times in ms; processor time in us a token", rows, digits=1)]
    result.notes.append(
        f"holds: no stream's 99th percentile of lateness is above {LIMIT_MS:.0f} ms; none broke. "
        "A token is due at its request's start + its number / rate: the TTFT counts as lateness."
    )
    result.finish(json_file)


def _measure(streams: int, apis: int, rate: float, starts: float, seconds: float) -> Outcome:
    """Raises NotStarted, and TimeoutError if the load does not come to its end."""
    words = ["--engine", "echo", "--nodes", str(NODES), "--api-processes", str(apis)]
    words += ["--token-delay", str(1 / rate)]
    tokens = int(2 * rate * (streams / starts + seconds)) + 1000  # none ends before the window
    # Every node has slots for all streams: how they are shared out is dispatch's matter.
    with harness.running(*words, "--slots", str(streams)) as canopy:
        pids = canopy.pids() | {"load": [os.getpid()]}
        request = streaming.chat(canopy.port, canopy.key, canopy.model, tokens)
        return asyncio.run(load.run(canopy.port, request, streams, starts, seconds, pids))
