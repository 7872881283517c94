"""The results of a run as tables and lines. Pure."""

from collections.abc import Sequence

from bench.chaos.faults import Incident
from bench.chaos.ledger import FAILURES, Ending, Ledger, Request
from bench.report import Row, Table

_ACCEPTED = [ending for ending in Ending if ending is not Ending.REFUSED]


def by_fault(ledger: Ledger, incidents: Sequence[Incident]) -> Table:
    """A row per kind of fault: what became of the requests that the service had meanwhile.

    A request that lived through several faults counts with every one, and once in the last row.
    """
    rows: list[Row] = []
    for kind in dict.fromkeys(incident.fault.kind for incident in incidents):
        injected = [it for it in incidents if it.fault.kind == kind and it.injected]
        touched = []
        for request in ledger.requests:
            if any(request.open_within(it.began, it.ended) for it in injected):
                touched.append(request)
        slowest = max((recovery(ledger, it) for it in injected), default=0.0)
        rows.append(_row(kind, len(injected), touched, slowest))
    accepted = []
    longest = 0.0
    for request in ledger.requests:
        longest = max(longest, request.longest_silence(0, float("inf")))
        if request.accepted is not None or request.ending in FAILURES:
            accepted.append(request)
    times = sum(incident.injected for incident in incidents)
    rows.append(_row("the whole run", times, accepted, longest))
    return Table("what faults did", rows)


def in_order(ledger: Ledger, incidents: Sequence[Incident], start: float) -> Table:
    """A row per fault, by time. `start`: when the load began."""
    rows: list[Row] = []
    for incident in sorted(incidents, key=_began):
        requests = sum(r.open_within(incident.began, incident.ended) for r in ledger.requests)
        rows.append(
            {
                "at s": incident.began - start,
                "fault": f"{incident.fault.kind} {incident.fault.target}",
                "over after s": incident.ended - incident.began,
                "requests": requests,
                "recovery s": recovery(ledger, incident),
                "problem": incident.problem or "-",
            }
        )
    return Table("the faults in order", rows, digits=1)


def recovery(ledger: Ledger, incident: Incident) -> float:
    """The longest silence, in seconds, of a running stream that began during the fault."""
    longest = 0.0
    for request in ledger.requests:
        longest = max(longest, request.longest_silence(incident.began, incident.ended))
    return longest


def failures(ledger: Ledger, incidents: Sequence[Incident], start: float) -> list[str]:
    """A line per broken promise: when, what, and which faults went on meanwhile."""
    lines = []
    for request in ledger.failures():
        ended = request.ended or float("inf")
        near = []
        for incident in incidents:
            if incident.began <= ended and incident.ended >= request.began:
                near.append(f"{incident.fault.kind} {incident.fault.target}")
        words = f"{len(request.text.split())} of {len(request.expected.split())} words"
        lines.append(
            f"{request.ending or 'never ended'}: {request.kind} {_identity(request)}, "
            f"{request.began - start:.1f}-{ended - start:.1f} s, {words}, {request.note} "
            f"[{', '.join(near)}]"
        )
    return lines


def _row(fault: str, times: int, requests: Sequence[Request], recovery_seconds: float) -> Row:
    counts = {"accepted": len(requests)} | _counts(requests)
    return {"fault": fault, "times": times} | counts | {"recovery s": recovery_seconds}


def _began(incident: Incident) -> float:
    return incident.began


def _identity(request: Request) -> str:
    """Its ids in the instance's logs, or else the tag of its words."""
    return " ".join(request.ids) or request.expected.partition(".")[0]


def _counts(requests: Sequence[Request]) -> dict[str, object]:
    return {
        str(ending): sum(request.ending is ending for request in requests) for ending in _ACCEPTED
    }
