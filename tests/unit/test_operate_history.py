"""The history: what is counted, stored, made into hours, bounded and shown, on a clock of ours."""

import argparse
import json
import random
import re
import statistics
import time
from collections import Counter
from collections.abc import AsyncIterator, Callable
from typing import Any, get_args

import httpx
import pytest
from asgiref.sync import sync_to_async
from hypothesis import given
from hypothesis import strategies as st

from api.context import app
from api.operate.history import commands, log, read, store
from api.operate.history.counts import OTHERS, Counts, EndedRequest, Tally, largest
from api.operate.history.histogram import BUCKETS, Histogram, bucket_of, upper_bound
from api.operate.history.log import HistoryLog
from api.operate.history.models import HistoryRow
from api.operate.history.series import METRICS, SHOWN, BadRange, Grouping, Metric, span
from broker.wire import Delta, Failed, Finished, Job, Start
from cli.home import REPOSITORY
from tests.unit.api_site import FakeClient, echo, node_state

NOON = 1_900_000_800  # a full hour
HOUR, MINUTE, DAY = 3600, 60, 86_400
TIMES = st.lists(st.floats(0, 2e5), max_size=60)


@pytest.fixture
async def empty(fake: FakeClient) -> AsyncIterator[FakeClient]:
    """The application without any history."""
    await HistoryRow.objects.all().adelete()
    yield fake
    await HistoryRow.objects.all().adelete()


def a_request(**changes: Any) -> EndedRequest:
    fields: dict[str, Any] = {
        "model": "tiny",
        "user": "ann",
        "node": "n1",
        "outcome": "finished",
        "wait": 0.5,
        "service": 2.0,
        "prompt_tokens": 3,
        "completion_tokens": 7,
    }
    return EndedRequest(**{**fields, **changes})


# ---- histograms


def test_every_time_is_in_the_bucket_that_ends_above_it() -> None:
    for bucket in range(BUCKETS - 1):
        assert bucket_of(upper_bound(bucket)) == bucket
        assert bucket_of(upper_bound(bucket) * 1.01) == bucket + 1
    assert (bucket_of(0.0), bucket_of(1e9)) == (0, BUCKETS - 1)


@given(TIMES, TIMES)
def test_minutes_make_an_hour_exactly(first: list[float], second: list[float]) -> None:
    hour, minutes = Histogram(), [Histogram(), Histogram()]
    for times, minute in zip((first, second), minutes, strict=True):
        for each in times:
            hour.add(each)
            minute.add(each)
    merged = Histogram()
    for minute in minutes:
        merged.merge(Histogram.decode(minute.encode()))
    assert merged.counts == hour.counts
    assert merged.quantile(0.95) == hour.quantile(0.95)


def test_percentiles_are_right_within_a_bucket() -> None:
    rng = random.Random(7)
    times = [rng.lognormvariate(0, 1.5) for _ in range(5000)]
    histogram = Histogram()
    for each in times:
        histogram.add(each)
    exact = statistics.quantiles(times, n=100)
    for part in (50, 95, 99):
        estimate = histogram.quantile(part / 100)
        assert estimate == pytest.approx(exact[part - 1], rel=0.1)
    assert Histogram().quantile(0.5) is None


# ---- counts


def test_the_smallest_names_are_summed() -> None:
    tally = Tally()
    for number in range(60):
        for _ in range(number + 1):
            tally.add(a_request(user=f"u{number}"))
    users = {name: counts for kind, name, counts in tally.bounded() if kind == "user"}
    assert len(users) == 51
    assert users[OTHERS].requests == sum(range(1, 11))
    assert sum(counts.requests for counts in users.values()) == sum(range(1, 61))
    nodes = {name for kind, name, _ in tally.bounded() if kind == "node"}
    assert nodes == {"n1"}


def test_the_others_stay_the_others() -> None:
    named = {OTHERS: Counts(requests=1000), "a": Counts(requests=1), "b": Counts(requests=2)}
    shown = largest(named, 2)
    assert {name: counts.requests for name, counts in shown.items()} == {
        "b": 2,
        "a": 1,
        OTHERS: 1000,
    }


# ---- what a process counts and stores


async def stored(**filters: Any) -> dict[str, Any]:
    """The single row that matches."""
    row = await HistoryRow.objects.aget(**filters)
    return {name: getattr(row, name) for name in ("requests", "failed", "cancelled")}


async def test_a_process_stores_each_minute_once(empty: FakeClient) -> None:
    now = [NOON + 5.0]
    history = HistoryLog("p1", wall=lambda: now[0])
    history._minute().add(a_request())
    await history.write()
    history._minute().add(a_request(outcome="failed"))
    now[0] += 60
    history._minute().add(a_request(outcome="cancelled"))
    await history.write()
    await history.write()
    first = await stored(kind="model", start=NOON)
    assert first == {"requests": 2, "failed": 1, "cancelled": 0}
    second = await stored(kind="user", start=NOON + 60)
    assert second == {"requests": 1, "failed": 0, "cancelled": 1}
    assert list(history._minutes) == [NOON + 60]
    await HistoryLog("p2", wall=lambda: now[0]).stop()
    assert await HistoryRow.objects.filter(kind="node").acount() == 2


async def test_a_database_that_is_away_loses_nothing(
    empty: FakeClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    from django.db import OperationalError

    def refuse(*_: object) -> None:
        raise OperationalError("disk is full")

    now = [float(NOON)]
    history = HistoryLog("p1", wall=lambda: now[0])
    history._minute().add(a_request())
    with monkeypatch.context() as broken:
        broken.setattr(store, "replace_minutes", refuse)
        await history.write()
        for _ in range(log.MOST_MINUTES):
            now[0] += 60
            history._minute().add(a_request())
            await history.write()
    await history.write()
    assert await HistoryRow.objects.filter(kind="model").acount() == log.MOST_MINUTES


async def test_the_use_of_slots_is_of_those_that_serve(empty: FakeClient) -> None:
    history = HistoryLog("p1", wall=lambda: float(NOON))
    states = [
        node_state("n1", status="busy", slots=4, running=3),
        node_state("n2", status="idle", slots=4, running=0),
        node_state("n3", status="drained", slots=4, running=0),
        node_state("root", engine="none", slots=0),
    ]
    for _ in range(10):
        history.use_of_slots(states, 1.0)
    await history.write()
    row = await HistoryRow.objects.aget(kind="model")
    assert (row.busy_seconds, row.slot_seconds) == (30.0, 80.0)
    assert await HistoryRow.objects.filter(kind="node").acount() == 2


# ---- hours


def add_minute(start: int, requests: int, process: str = "p1", user: str = "ann") -> None:
    tally = Tally()
    for number in range(requests):
        tally.add(a_request(user=user, wait=0.1 * number))
    rows = store.rows_of(MINUTE, start, tally, process)
    store.replace_minutes([start], rows, process)


def summed(start: int, end: int, hours_until: int) -> Counts:
    total = Counts()
    for piece in store.pieces("model", start, end, hours_until):
        total.merge(piece.counts)
    return total


def check_rolling_up() -> None:
    for minute in range(120):
        add_minute(NOON + minute * MINUTE, minute % 3)
    add_minute(NOON, 5, process="p2")
    before = summed(NOON, NOON + 2 * HOUR, 0)
    store.roll_up(NOON + HOUR)
    assert store.rolled_until() == 0, "processes may still add to an hour that has just ended"
    store.roll_up(NOON + 2 * HOUR)
    assert store.rolled_until() == NOON + HOUR
    store.roll_up(NOON + 2 * HOUR)
    after = summed(NOON, NOON + 2 * HOUR, NOON + HOUR)
    assert after == before
    assert HistoryRow.objects.filter(seconds=HOUR, kind="model").count() == 1

    store.remove_old(NOON + 10 * DAY)
    left = HistoryRow.objects.filter(seconds=MINUTE, kind="model").count()
    assert left == 40, "minutes that are no hour yet stay, however old"
    store.roll_up(NOON + 10 * DAY)
    while store.remove_old(NOON + 10 * DAY):
        pass
    assert HistoryRow.objects.filter(seconds=MINUTE).count() == 0
    assert summed(NOON, NOON + 2 * HOUR, store.rolled_until()) == before
    while store.remove_old(NOON + 91 * DAY):
        pass
    assert HistoryRow.objects.count() == 0


async def test_minutes_become_hours_and_old_rows_go(empty: FakeClient) -> None:
    await sync_to_async(check_rolling_up)()


# ---- what is shown


async def test_percentiles_have_the_others_too(
    empty: FakeClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    tally = Tally()
    for number in range(SHOWN + 2):
        counts = tally.of("user", f"user{number:02}")
        counts.requests = 100 - number
        counts.waits.add(100.0 if number >= SHOWN else 1.0)
    start = int(time.time()) // MINUTE * MINUTE
    rows = store.rows_of(MINUTE, start, tally, "api-1")
    await sync_to_async(store.replace_minutes)([start], rows, "api-1")
    shown = await sync_to_async(read.read)("wait_p50", "user", start, start + MINUTE)
    assert [line.name for line in shown.series][-2:] == [f"user{SHOWN - 1:02}", OTHERS]
    assert shown.series[0].total == pytest.approx(1.0, rel=0.4)
    assert shown.series[-1].total == pytest.approx(100.0, rel=0.4)
    monkeypatch.setattr(store, "MOST_HISTOGRAMS", SHOWN)
    fewer = await sync_to_async(read.read)("wait_p50", "user", start, start + MINUTE)
    assert [line.name for line in fewer.series] == [line.name for line in shown.series[:-1]]


def test_the_page_knows_the_servers_metrics_and_groupings() -> None:
    text = (REPOSITORY / "frontend/src/dashboard/history/history.ts").read_text()

    def listed(name: str) -> tuple[str, ...]:
        match = re.search(rf"const {name} = \[(.*?)\]", text, re.DOTALL)
        assert match is not None
        return tuple(re.findall(r'"(\w+)"', match[1]))

    assert listed("METRICS") == get_args(Metric) == tuple(METRICS)
    assert listed("GROUPINGS") == get_args(Grouping)


@pytest.mark.parametrize(
    ("back", "step", "expected"),
    [
        (HOUR, None, MINUTE),
        (DAY, None, MINUTE),
        (7 * DAY, None, HOUR),
        (90 * DAY, None, HOUR),
        (HOUR, 900, 900),
    ],
)
def test_the_step_is_the_shortest_that_fits(back: int, step: int | None, expected: int) -> None:
    shown = span(NOON - back, NOON, step, NOON)
    assert (shown.step, shown.start, shown.end) == (expected, NOON - back, NOON)


@pytest.mark.parametrize(
    ("start", "end", "step", "reason"),
    [
        (NOON, NOON, None, "to: must be after"),
        (NOON - 200 * DAY, NOON, None, "only 90 days"),
        (NOON - 2 * DAY, NOON, 60, "minutes are kept for a day"),
        (NOON - HOUR, NOON, 7, "step: must be one of"),
        (NOON - HOUR, 10**11, 3600, "more than"),
    ],
)
def test_what_cannot_be_shown_is_refused(
    start: int, end: int, step: int | None, reason: str
) -> None:
    with pytest.raises(BadRange, match=reason):
        span(start, end, step, NOON)


async def show(client: httpx.AsyncClient, **query: Any) -> dict[str, Any]:
    answer = await client.get("/api/operate/history", params=query)
    assert answer.status_code == 200, answer.text
    document: dict[str, Any] = answer.json()
    return document


def totals(document: dict[str, Any]) -> dict[str, float]:
    return {line["name"]: line["total"] for line in document["series"]}


SCRIPTS: dict[str, Callable[[Job], list[Any]]] = {
    "finished": echo,
    "failed": lambda job: [
        Start(request_id=job.request_id, node="n2"),
        Failed(request_id=job.request_id, code="engine", message="it broke"),
    ],
    "cancelled": lambda job: [
        Start(request_id=job.request_id, node="n1"),
        Delta(request_id=job.request_id, text="some ", tokens=2),
        Finished(request_id=job.request_id, reason="cancelled", completion_tokens=2),
    ],
}


async def test_200_requests_are_counted_as_they_were_sent(
    empty: FakeClient, program: httpx.AsyncClient, staff: httpx.AsyncClient
) -> None:
    """The history against the sender's own count."""
    rng = random.Random(3)
    sent: Counter[tuple[str, str]] = Counter()
    tokens = 0
    for _ in range(200):
        kind, model = rng.choice(list(SCRIPTS)), rng.choice(["tiny", "big"])
        words = rng.randint(1, 9)
        empty.script = SCRIPTS[kind]
        body = {"model": model, "messages": [{"role": "user", "content": "w " * words}]}
        answer = await program.post("/v1/chat/completions", json=body)
        assert (answer.status_code == 200) == (kind != "failed")
        sent[kind, model] += 1
        if kind == "finished":
            tokens += words
        if kind == "cancelled":
            tokens += 2
    by_model = totals(await show(staff, by="model"))
    for model in ("tiny", "big"):
        assert by_model[model] == sum(sent[kind, model] for kind in SCRIPTS)
    for metric in ("failed", "cancelled"):
        document = await show(staff, metric=metric)
        assert totals(document) == {"all": sum(sent[metric, model] for model in ("tiny", "big"))}
    assert totals(await show(staff, metric="tokens_out"))["all"] == tokens
    finished = sum(sent["finished", model] for model in ("tiny", "big"))
    assert totals(await show(staff, metric="tokens_in"))["all"] == 3 * finished
    by_node = totals(await show(staff, by="node"))
    assert by_node["n2"] == sum(sent["failed", model] for model in ("tiny", "big"))
    assert by_node["n1"] == 200 - by_node["n2"]
    (user,) = totals(await show(staff, by="user")).values()
    assert user == 200
    waits = await show(staff, metric="wait_p95")
    assert 0 < totals(waits)["all"] < 1.0
    assert sum(value or 0 for value in (await show(staff))["series"][0]["values"]) == 200


async def test_the_history_is_for_staff_and_comes_as_csv(
    empty: FakeClient, staff: httpx.AsyncClient, member: httpx.AsyncClient
) -> None:
    for path in ("/api/operate/history", "/api/operate/history/csv"):
        assert (await member.get(path)).status_code == 403
    app().history._minute().add(a_request(user="=1+1"))
    answer = await staff.get("/api/operate/history/csv?by=user&metric=tokens_out")
    head, *lines = answer.text.splitlines()
    assert head == "start,'=1+1"
    assert sum(int(line.partition(",")[2]) for line in lines) == 7
    assert "canopy-tokens_out-by-user.csv" in answer.headers["Content-Disposition"]
    refused = await staff.get("/api/operate/history?from=5&to=1")
    assert (refused.status_code, refused.json()["error"]["field"]) == (400, "to")


async def test_a_span_of_hours_reads_hours_and_the_newest_minutes(empty: FakeClient) -> None:
    def check() -> None:
        hour = int(time.time()) // HOUR * HOUR
        for back in range(30):
            add_minute(hour - back * HOUR, 2)
        store.roll_up(int(time.time()))
        shown = read.read("requests", "model", hour - 40 * HOUR, hour + HOUR)
        assert shown.shown.step == HOUR
        assert [line.total for line in shown.series] == [60]
        assert shown.series[0].values[-1] == 2

    await sync_to_async(check)()


# ---- the command line


def printed(words: list[str], capsys: pytest.CaptureFixture[str]) -> tuple[int, list[str]]:
    parser = argparse.ArgumentParser()
    commands.add_arguments(parser)
    status = commands.run(parser.parse_args(words))
    output = capsys.readouterr()
    return status, (output.out + output.err).splitlines()


async def test_the_command_prints_a_table_json_or_csv(
    empty: FakeClient, capsys: pytest.CaptureFixture[str]
) -> None:
    def check() -> None:
        minute = int(time.time()) // MINUTE * MINUTE
        add_minute(minute, 3)
        add_minute(minute - MINUTE, 2, user="bob")
        status, lines = printed(["--by", "user"], capsys)
        assert status == 0
        assert lines[0].split() == ["requests", "(requests)", "ann", "bob"]
        assert [line.split()[-2:] for line in lines[1:]] == [["0", "2"], ["3", "0"], ["3", "2"]]
        _, lines = printed(["--by", "user", "--json"], capsys)
        document = json.loads(lines[0])
        assert {line["name"]: line["total"] for line in document["series"]} == {"ann": 3, "bob": 2}
        _, lines = printed(["--by", "user", "--csv"], capsys)
        assert lines[0] == "start,ann,bob"
        assert printed(["--metric", "nope"], capsys)[0] == 2
        assert printed(["--hours", "48", "--step", "60"], capsys) == (
            2,
            ["step: minutes are kept for a day; use 3600 or more"],
        )
        HistoryRow.objects.all().delete()
        assert printed([], capsys) == (0, ["Nothing was asked in this time."])

    await sync_to_async(check)()
