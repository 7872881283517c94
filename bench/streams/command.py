"""`bench http`: N server-sent event streams through /v1/chat/completions, `echo` at a fixed token rate.

A cell is a number of streams and of API processes, in an instance of its own. The streams start one after the other;
when all run, a window is measured: whether every token came when it was due, and what each process spent.
"""

from collections.abc import Sequence
from dataclasses import asdict
from typing import Annotated

import msgspec
import typer

from bench import report
from bench.report import Report, Rows
from bench.streams import cell
from bench.streams.cell import PROCESSES, Cell, Settings
from bench.streams.schedule import BEHIND
from bench.streams.search import Search

STREAMS = [100, 1000, 2000]
APIS = [1, 2]


def command(
    streams: Annotated[
        list[int] | None, typer.Option(min=1, help="Streams at once, repeatable.")
    ] = None,
    apis: Annotated[
        list[int] | None, typer.Option(min=1, help="API processes, repeatable.")
    ] = None,
    rate: Annotated[float, typer.Option(min=0.1, help="Tokens a second in each stream.")] = 20.0,
    seconds: Annotated[float, typer.Option(min=1, help="Length of the measured window.")] = 20.0,
    starts: Annotated[float, typer.Option(min=1, help="Streams started a second.")] = 50.0,
    find: Annotated[
        bool, typer.Option("--find", help="Look for the largest number of streams that holds.")
    ] = False,
    tries: Annotated[
        int, typer.Option(min=1, help="--find: runs at most, for each number of API processes.")
    ] = 5,
    pause: Annotated[
        bool, typer.Option("--pause", help="Wait for Enter first: to attach a profiler.")
    ] = False,
    json_file: report.JsonOption = None,
) -> None:
    """Token streams over HTTP: how many keep up with their rate, and what they cost."""
    settings = Settings(rate, seconds, starts, pause)
    result = Report("http", {**asdict(settings), "nodes": cell.NODES, "engine": "echo"})
    asked = [(many, few) for few in apis or APIS for many in streams or STREAMS]
    if find:
        found = {few: _find(few, (streams or [1000])[0], tries, settings) for few in apis or APIS}
        cells = [each for tried in found.values() for each in tried]
        result.notes += [_verdict(few, tried) for few, tried in found.items()]
    else:
        cells = []
        for many, few in asked:
            try:
                cells.append(_measured(many, few, settings))
            except TimeoutError:
                late = (
                    f"{many} streams, {few} API processes: so far behind that nothing was measured"
                )
                report.say(f"  {late}")
                result.notes.append(f"{late}.")
    _tell(result, cells)
    result.finish(json_file)


def _find(apis: int, first: int, tries: int, settings: Settings) -> list[Cell]:
    """The cells of a search, in the order of their sizes."""
    search = Search(first, tries)
    cells: list[Cell] = []
    while (streams := search.next()) is not None:
        cells.append(_measured(streams, apis, settings))
        search.tell(streams, cells[-1].outcome.reading.holds)
    return sorted(cells, key=lambda each: each.streams)


def _measured(streams: int, apis: int, settings: Settings) -> Cell:
    report.say(f"{streams} streams, {apis} API process{'es' if apis > 1 else ''}")
    found = cell.measure(streams, apis, settings)
    reading = found.outcome.reading
    report.say(
        f"  late p99 {reading.late.p99:.0f} ms, worst stream {reading.worst_stream:.0f} ms: {_holds(found)}"
    )
    return found


def _holds(found: Cell) -> str:
    errors = found.outcome.reading.errors
    if errors:
        return "; ".join(f"{count} x {error}" for error, count in errors.items())
    if found.outcome.reading.holds:
        return "yes"
    return "but for the TTFT" if found.outcome.reading.worst_lag <= 1000 * BEHIND else "NO"


def _verdict(apis: int, tried: Sequence[Cell]) -> str:
    held = max((each.streams for each in tried if each.outcome.reading.holds), default=0)
    failed = min((each.streams for each in tried if not each.outcome.reading.holds), default=None)
    more = f"{failed} do not" if failed else "more were not tried"
    return f"{apis} API process{'es' if apis > 1 else ''}: {held} streams hold, {more}."


def _tell(result: Report, cells: Sequence[Cell]) -> None:
    result.tables += [_delivery(cells), _lateness(cells), _processors(cells), _costs(cells)]
    result.facts["cells"] = [msgspec.to_builtins(each) for each in cells]
    result.notes += [
        f"holds: no stream's own p99 of lateness is above {1000 * BEHIND:.0f} ms, and no stream broke. A token is due "
        "at its request's start + its number / rate; so TTFT, of which the engine takes 1 / rate, counts as lateness.",
        "after the first: the worst stream by the schedule that begins with its first token, so without the TTFT.",
        "gap: between two writes that reach the client. tokens a write: several where a process was behind and merged.",
        "load's lag: by how much the load's own timers were late, p99: so much of the lateness may be its own.",
        "node: both nodes together. busy: all processors of the machine, whoever used them; where it is near 100 %, "
        "processor time is the bound.",
        "memory: growth of the API's resident memory from before the first stream to the window's end, a stream.",
    ]


def _delivery(cells: Sequence[Cell]) -> Rows:
    columns = (
        "streams",
        "APIs",
        "delivered %",
        "TTFT p50 ms",
        "TTFT p95 ms",
        "TTFT p99 ms",
        "memory KB",
        "holds",
    )
    rows = []
    for each in cells:
        reading, first = each.outcome.reading, each.outcome.reading.first_token
        row = (
            *_name(each),
            100 * reading.delivered,
            first.p50,
            first.p95,
            first.p99,
            each.stream_kb,
            _holds(each),
        )
        rows.append(row)
    return Rows("delivery", columns, rows, digits=1)


def _lateness(cells: Sequence[Cell]) -> Rows:
    columns = (
        "streams", "APIs", "gap p50", "gap p99", "tokens a write", "late p50", "late p99", "late max",
        "worst stream p99", "after the first", "never behind %", "load's lag",
    )  # fmt: skip
    rows = []
    for each in cells:
        reading, late = each.outcome.reading, each.outcome.reading.late
        row = (
            *_name(each), reading.gap.p50, reading.gap.p99, reading.tokens / max(1, reading.writes), late.p50, late.p99,
            late.max, reading.worst_stream, reading.worst_lag, 100 * reading.never_behind, each.outcome.own_lag.p99,
        )  # fmt: skip
        rows.append(row)
    return Rows("gaps and lateness, ms", columns, rows, digits=1)


def _processors(cells: Sequence[Cell]) -> Rows:
    """What bounds it."""
    rows = []
    for each in cells:
        shares = [100 * each.cpu[name] / each.outcome.reading.seconds for name in PROCESSES]
        rows.append((*_name(each), *shares, sum(shares), 100 * each.busy))
    columns = ("streams", "APIs", *PROCESSES, "all", "busy % of all")
    return Rows("processor time, % of one processor", columns, rows, digits=0)


def _costs(cells: Sequence[Cell]) -> Rows:
    rows = []
    for each in cells:
        reading = each.outcome.reading
        token = [1e6 * each.cpu[name] / max(1, reading.tokens) for name in PROCESSES]
        second = 1000 * sum(each.cpu.values()) / reading.seconds / each.streams
        rows.append((*_name(each), *token, sum(token), second))
    columns = ("streams", "APIs", *PROCESSES, "all", "ms a stream and second")
    return Rows("processor time, microseconds a token", columns, rows, digits=1)


def _name(each: Cell) -> tuple[int, int]:
    return each.streams, each.apis
