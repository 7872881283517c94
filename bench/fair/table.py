"""What `bench fair` prints, and whether the goal is met."""

from collections.abc import Sequence

from bench import stats
from bench.fair.estimates import Honesty
from bench.fair.scenarios import Found, Settings, Shared
from bench.report import Cell, Report, Rows

RATIO = 1.5  # light user's time to first token, p95, beside a flood against alone
_PROCESSES = ("api", "root", "nodes", "broker", "bench")


def tell(
    result: Report, settings: Settings, found: Sequence[Found], shared: Sequence[Shared]
) -> None:
    """Fills the report. The first of `found` is the light user alone."""
    alone = stats.percentile(found[0].firsts, 95)
    result.tables += [
        _light(found, alone, settings),
        _onset(found, settings.flood),
        _waiting(found),
        _estimates(found),
        _shares(shared),
    ]
    result.facts["onset_first_token_seconds"] = {
        each.scenario.name: each.onset_firsts for each in found
    }
    result.facts["light_first_token_seconds"] = {each.scenario.name: each.firsts for each in found}
    result.notes += [
        *(_verdict(each, alone, settings) for each in found[1:]),
        f"first token: from the request to its first token, of which the engine takes {settings.token_delay:g} s. "
        "in services: p95 beyond that of the light user alone, in units of one answer's length "
        f"({settings.service_seconds:g} s). not begun: within 30 s after the last question; they count as first then.",
        "told: places in the line that the light user was told first. flood waiting: the fewest of its requests that "
        "had not begun when the light user asked. Asked after the flood had been taken in; before, see the next table.",
        "estimates: the first time each of the flood's readers was told, as text (to the second below 10 s, to 5 s "
        "below a minute, else to the minute), against the time until the first token. The root's own figures are not "
        "rounded, and of its latest 200 jobs.",
        "Both floods have work all the time; entitled: by share, whatever the answers' length.",
    ]


def _light(found: Sequence[Found], alone: float, settings: Settings) -> Rows:
    rows = []
    for each in found:
        firsts = each.firsts
        p50, p95 = (stats.percentile(firsts, share) for share in (50, 95))
        places = [track.told[0].position for track in each.light if track.told]
        known = [place for place in places if place is not None]
        rows.append(
            (
                each.scenario.name, len(firsts), sum(track.first is None for track in each.light),
                p50, p95, max(firsts), p95 / alone, (p95 - alone) / settings.service_seconds,
                len(known), max(known, default=None), each.least_waiting,
            )
        )  # fmt: skip
    columns = (
        "the light user", "asked", "not begun", "first token p50 s", "p95 s", "longest s", "x alone", "in services",
        "told a place", "worst place", "flood waiting",
    )  # fmt: skip
    return Rows(
        f"a light user beside {settings.flood} requests of another", columns, rows, digits=3
    )


def _onset(found: Sequence[Found], size: int) -> Rows:
    rows: list[Sequence[Cell]] = []
    for each in found:
        if each.onset:
            firsts = each.onset_firsts
            rows.append(
                (
                    each.scenario.name, each.onset_seconds, size / each.onset_seconds, len(firsts),
                    stats.percentile(firsts, 50), max(firsts),
                    *(1000 * each.onset_cpu[name] / size for name in _PROCESSES),
                )
            )  # fmt: skip
    columns = (
        "the light user", "lasted s", "taken in a second", "asked", "first token p50 s", "longest s",
        *(f"{name} ms" for name in _PROCESSES),
    )  # fmt: skip
    return Rows(
        "while the flood's first requests, sent at once, are taken in; processor time a request",
        columns,
        rows,
    )


def _waiting(found: Sequence[Found]) -> Rows:
    rows: list[Sequence[Cell]] = [
        (each.scenario.name, *(1000 * each.cpu[name] for name in _PROCESSES))
        for each in found
        if each.cpu
    ]
    columns = ("while they wait", *(f"{name} ms/s" for name in _PROCESSES))
    return Rows(
        "processor time while the flood waits and is refilled, ms a second", columns, rows, digits=0
    )


def _estimates(found: Sequence[Found]) -> Rows:
    rows: list[Sequence[Cell]] = []
    for each in found:
        if not each.estimates:
            continue
        honest = Honesty.of(each.estimates)
        begun = sum(track.first is not None for track in each.flood)
        rows.append(
            (
                each.scenario.name, begun, honest.count, honest.waited, honest.error, honest.bias,
                100 * honest.relative, each.root.get("waited"), each.root.get("wait_error"),
            )
        )  # fmt: skip
    columns = (
        "the flood", "begun", "told a time", "mean wait s", "mean error s", "bias s", "median error %",
        "root: waited s", "root: error s",
    )  # fmt: skip
    return Rows("were the estimates true?", columns, rows)


def _shares(shared: Sequence[Shared]) -> Rows:
    rows = []
    for each in shared:
        total = sum(each.tokens)
        for index in (0, 1):
            share = each.scenario.shares[index]
            rows.append(
                (
                    each.scenario.name, each.scenario.tokens[index], share, each.begun[index], each.tokens[index],
                    100 * each.tokens[index] / total if total else None,
                    100 * share / sum(each.scenario.shares), each.least_waiting,
                )
            )  # fmt: skip
    columns = (
        "two floods",
        "tokens an answer",
        "share",
        "begun",
        "tokens",
        "%",
        "entitled %",
        "least waiting",
    )
    return Rows("what two users get who both flood", columns, rows, digits=1)


def _verdict(each: Found, alone: float, settings: Settings) -> str:
    p95 = stats.percentile(each.firsts, 95)
    services = (p95 - alone) / settings.service_seconds
    ratio = "met" if p95 <= RATIO * alone else "MISSED"
    one = "met" if services <= 1 else "MISSED"
    return (
        f"{each.scenario.name}: {p95 / alone:.1f} x alone ({ratio}: at most {RATIO} x), {services:.2f} services later "
        f"({one}: at most one)"
    )
