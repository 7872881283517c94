"""The results of a run as tables. Pure."""

from collections.abc import Sequence

from bench.chaos.schedule import Happened
from bench.load.ledger import FAILURES, Ending, Ledger, Request
from bench.report import Cell, Rows

_ENDINGS = tuple(ending for ending in Ending if ending is not Ending.REFUSED)


def by_fault(ledger: Ledger, happened: Sequence[Happened]) -> Rows:
    """A row a kind of fault: what became of the requests that the service had while it went on, and a row for all.

    A request that lived through several faults counts with each of them, and once in the last row.
    """
    kinds = dict.fromkeys(each.fault.kind for each in happened)
    rows: list[Sequence[Cell]] = []
    for kind in kinds:
        times = [each for each in happened if each.fault.kind == kind]
        made = [each for each in times if each.made]
        touched = [
            each
            for each in ledger.requests
            if any(each.open_within(it.began, it.ended) for it in made)
        ]
        slowest = max((slowest_recovery(ledger, each) for each in made), default=0.0)
        rows.append((kind, len(made), *_counts(touched), slowest))
    accepted = [
        each for each in ledger.requests if each.accepted is not None or each.ending in FAILURES
    ]
    longest = max((each.longest_silence(0, float("inf")) for each in ledger.requests), default=0.0)
    rows.append(("the whole run", sum(each.made for each in happened), *_counts(accepted), longest))
    return Rows(
        "what faults did", ("fault", "times", "accepted", *map(str, _ENDINGS), "recovery s"), rows
    )


def by_user(ledger: Ledger) -> Rows:
    """A row a kind of user."""
    rows: list[Sequence[Cell]] = []
    for kind in dict.fromkeys(each.kind for each in ledger.requests):
        asked = [each for each in ledger.requests if each.kind == kind]
        refused = sum(each.ending is Ending.REFUSED for each in asked)
        rows.append(
            (kind, len(asked), refused, sum(each.retries for each in asked), *_counts(asked)[1:])
        )
    return Rows(
        "what users saw", ("user", "asked", "refused", "retries", *map(str, _ENDINGS)), rows
    )


def refusals(ledger: Ledger) -> Rows:
    """A row a reason, the commonest first."""
    return Rows(
        "why tries were turned away", ("reason", "times"), ledger.turned_away.most_common(12)
    )


def in_order(ledger: Ledger, happened: Sequence[Happened], start: float) -> Rows:
    """A row a fault, as they came. `start`: when the load began."""
    rows = [
        (
            each.began - start, f"{each.fault.kind} {each.fault.target}", each.ended - each.began,
            sum(request.open_within(each.began, each.ended) for request in ledger.requests),
            slowest_recovery(ledger, each), each.problem or "-",
        )
        for each in sorted(happened, key=lambda each: each.began)
    ]  # fmt: skip
    columns = ("at s", "fault", "over after s", "requests", "recovery s", "problem")
    return Rows("the faults in order", columns, rows, digits=1)


def slowest_recovery(ledger: Ledger, happened: Happened) -> float:
    """The longest silence, in seconds, of a stream that had begun, and fell silent while the fault went on."""
    return max(
        (each.longest_silence(happened.began, happened.ended) for each in ledger.requests),
        default=0.0,
    )


def failures(ledger: Ledger, happened: Sequence[Happened], start: float) -> list[str]:
    """A line for each broken promise: when, what, and which faults went on meanwhile."""
    lines = []
    for each in ledger.failures():
        ended = each.ended or float("inf")
        near = [
            f"{it.fault.kind} {it.fault.target}"
            for it in happened
            if it.began <= ended and it.ended >= each.began
        ]
        span = f"{each.began - start:.1f}-{ended - start:.1f} s"
        lines.append(
            f"{each.ending or 'never ended'}: {each.kind} {_identity(each)}, {span}, "
            f"{len(each.text.split())} of {len(each.expected.split())} words, {each.note} [{', '.join(near)}]"
        )
    return lines


def slowest(ledger: Ledger, start: float, count: int = 5) -> list[str]:
    """A line for each of the longest silences, and for each of the longest waits for the first word."""
    silences = [
        (last - first, first, each) for each in ledger.requests for first, last in each.silences
    ]
    waits = [
        (each.heard_first - each.began, each.began, each)
        for each in ledger.requests
        if each.heard_first
    ]
    return [
        f"{what} {seconds:.1f} s from {since - start:.1f} s: {each.kind} {_identity(each)}"
        for what, found in (("silent for", silences), ("waited", waits))
        for seconds, since, each in sorted(found, key=lambda found: -found[0])[:count]
    ]


def _identity(request: Request) -> str:
    """Its ids in the instance's logs, or else the tag of its words."""
    return " ".join(request.ids) or request.expected.partition(".")[0]


def _counts(requests: Sequence[Request]) -> tuple[int, ...]:
    return (
        len(requests),
        *(sum(each.ending is ending for each in requests) for ending in _ENDINGS),
    )
