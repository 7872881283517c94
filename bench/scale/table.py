"""What `bench scale` prints: the tables, the lines through them, and whether the goal is met."""

from collections.abc import Mapping, Sequence

from bench import stats
from bench.report import Cell, Report, Rows
from bench.scale.fit import Line
from bench.scale.measure import GROUPS, Measured
from bench.scale.messages import KINDS

FLAT = 1.25  # a job among the most nodes may cost so many times what it costs among the fewest
STRAIGHT = 0.10  # and no depth may be further from the line than this share of the mean


def tell(result: Report, alone: Mapping[str, float], found: Sequence[Measured]) -> None:
    """Fills the report."""
    lines, verdicts = _lines(found)
    result.tables += [_processor(found), _ways(found), _resting(alone, found), lines]
    result.facts["blocks_net_ms_a_job"] = {each.shape.root: each.blocks for each in found}
    result.facts["messages_a_second_at_rest"] = {each.shape.root: each.beats for each in found}
    result.notes += [
        *verdicts,
        *_rest_verdicts(found),
        "tree: complete binary trees; chain: one node below the other; flat: all nodes below the root. Only the "
        "deepest nodes have slots, so every job passes every level. depth: hops below the root; the root comes on top.",
        "ms a job: processor time while jobs came, less what the same tree takes at rest in that time; gross: nothing "
        "taken off. Of the median block. Nodes that share a process are counted together; a hop is a node passed, the "
        "root among them. client: the benchmark itself with the API's broker client, which also reads all states.",
        "messages are publishes, counted in a block of its own under RabbitMQ's firehose, less those at rest. "
        "capacity: counters from child to parent; state: for dashboards.",
    ]


def _processor(found: Sequence[Measured]) -> Rows:
    rows = [
        (
            *_which(each), each.processes, *(each.net[group] for group in GROUPS), each.total, _a_hop(each),
            sum(each.gross.values()),
        )
        for each in found
    ]  # fmt: skip
    columns = ("series", "nodes", "depth", "processes", *GROUPS, "all", "nodes a hop", "gross")
    return Rows("processor time, ms a job", columns, rows)


def _a_hop(each: Measured) -> float:
    """Of the nodes alone."""
    return sum(each.net[group] for group in ("root", "inner", "leaf")) / (each.shape.depth + 1)


def _ways(found: Sequence[Measured]) -> Rows:
    rows = [
        (
            *_which(each), len(each.seconds), *(1000 * stats.percentile(each.seconds, share) for share in (50, 95)),
            *(each.messages[kind] for kind in KINDS), sum(each.messages.values()),
        )
        for each in found
    ]  # fmt: skip
    columns = ("series", "nodes", "depth", "jobs", "p50 ms", "p95 ms", *KINDS, "messages")
    return Rows("latency, and messages a job", columns, rows)


def _resting(alone: Mapping[str, float], found: Sequence[Measured]) -> Rows:
    """Of the broker and the client, what the tree adds to them."""
    none: tuple[Cell, ...] = (
        "none",
        0,
        0,
        None,
        alone["broker"],
        None,
        None,
        None,
        None,
        None,
        None,
    )
    rows = [none]
    for each in found:
        nodes = sum(each.idle[group] for group in ("root", "inner", "leaf"))
        added = nodes + each.idle["broker"] - alone["broker"]
        beats = sum(each.beats.values())
        rows.append(
            (
                *_which(each), nodes, each.idle["broker"], each.idle["client"], added / (each.shape.nodes + 1), beats,
                beats / (each.shape.nodes + 1), each.root_mb, each.node_mb,
            )
        )  # fmt: skip
    columns = (
        "series", "nodes", "depth", "nodes ms/s", "broker ms/s", "client ms/s", "nodes and broker, a node",
        "messages/s", "a node", "root MB", "MB a node",
    )  # fmt: skip
    return Rows("at rest: processor time, ms a second (of a core's 1000); memory", columns, rows)


def _lines(found: Sequence[Measured]) -> tuple[Rows, list[str]]:
    """Processor time and messages of a job against depth and number, and what that says of the goal."""
    rows: list[Sequence[Cell]] = []
    verdicts = []
    for series, against in (("chain", "depth"), ("tree", "depth"), ("flat", "nodes")):
        of_it = [each for each in found if each.shape.series == series]
        if len(of_it) < 2:
            continue
        first, last = of_it[0].shape, of_it[-1].shape
        steps = last.depth / first.depth if against == "depth" else last.nodes / first.nodes
        for what, values in (
            ("ms a job", [each.total for each in of_it]),
            ("messages a job", [sum(each.messages.values()) for each in of_it]),
        ):
            places = [
                each.shape.depth if against == "depth" else each.shape.nodes for each in of_it
            ]
            line = Line.through(list(zip(map(float, places), values, strict=True)))
            ratio = values[-1] / values[0]
            rows.append(
                (
                    what,
                    series,
                    against,
                    line.level,
                    line.slope,
                    line.r2,
                    100 * line.off,
                    ratio,
                    steps,
                )
            )
            verdicts.append(_verdict(what, series, against, line, ratio, steps))
    columns = (
        "what",
        "series",
        "against",
        "at 0",
        "a step",
        "R2",
        "off the line %",
        "last / first",
        "steps",
    )
    return Rows("straight lines, least squares", columns, rows, digits=3), verdicts


def _rest_verdicts(found: Sequence[Measured]) -> list[str]:
    """A tree at rest is to cost each node the same, however many there are."""
    notes = []
    for series in dict.fromkeys(each.shape.series for each in found):
        a_node = [
            sum(e.beats.values()) / (e.shape.nodes + 1) for e in found if e.shape.series == series
        ]
        first, last = a_node[0], a_node[-1]
        met = last <= FLAT * first
        notes.append(
            f"{'met' if met else 'MISSED'}: messages a second at rest, {series}: {first:.2f} a node in the smallest "
            f"tree, {last:.2f} in the largest (linear in nodes: at most {FLAT} x)"
        )
    return notes


def _verdict(what: str, series: str, against: str, line: Line, ratio: float, steps: float) -> str:
    if against == "depth":
        met = line.off <= STRAIGHT
        rule = f"{ratio:.2f} x for {steps:g} x the depth, at most {100 * line.off:.0f} % off a straight line"
        goal = f"linear: at most {100 * STRAIGHT:.0f} %"
    else:
        met = ratio <= FLAT
        rule = f"{ratio:.2f} x for {steps:g} x the nodes, {line.slope:+.4f} a node"
        goal = f"flat: at most {FLAT} x"
    return f"{'met' if met else 'MISSED'}: {what}, {series}, against {against}: {rule} ({goal})"


def _which(each: Measured) -> tuple[str, int, int]:
    return each.shape.series, each.shape.nodes, each.shape.depth
