"""`bench chaos`: schedule, ledger, tables, growth, and its users on scripted answers."""

import asyncio
import json
import os
import random
from collections.abc import AsyncIterator, Sequence
from typing import Any

import httpx
import pytest
from hypothesis import given
from hypothesis import strategies as st

from bench.chaos import growth, schedule, tables
from bench.chaos.faults import Incident, unrest
from bench.chaos.growth import MEASURES, Life, Point
from bench.chaos.ledger import ApiDeath, Ending, Ledger, Request, compare, numbered_words
from bench.chaos.schedule import KINDS, Fault, Tree
from bench.chaos.service import Service
from bench.chaos.users import User
from bench.report import Table
from cli.processes import ProcessRecord

TREE = Tree.of(7, 2)
EXPECTED = numbered_words("t", 12)


# ---- the schedule


def make(seed: int, seconds: float = 600.0, kinds: Sequence[str] = tuple(KINDS)) -> list[Fault]:
    return schedule.make(seed, seconds, 3.0, TREE, kinds)


def test_a_seed_repeats_its_faults_and_another_seed_does_not() -> None:
    assert make(1) == make(1)
    assert make(1) != make(2)


def test_every_kind_gets_its_turn_before_one_comes_again() -> None:
    kinds = [fault.kind for fault in make(3)]
    assert len(kinds) == 30
    assert set(kinds[: len(KINDS)]) == set(KINDS)


@pytest.mark.parametrize("seed", range(50))
def test_faults_hit_what_their_kind_says(seed: int) -> None:
    faults = make(seed)
    assert [fault.at for fault in faults] == sorted(fault.at for fault in faults)
    assert all(schedule.CALM <= fault.at < 600 for fault in faults)
    for fault in faults:
        least, most = KINDS[fault.kind]
        assert least <= fault.seconds <= most
        match fault.kind.split():
            case [_, "leaf"]:
                assert fault.target in ("n4", "n5", "n6", "n7")
            case [_, "inner"]:
                assert fault.target in ("n1", "n2", "n3")
            case ["attach"]:
                assert fault.target not in TREE.path_to_root(fault.parent)
                assert fault.parent != TREE.parents[fault.target]


# ---- what a text is worth


@pytest.mark.parametrize(
    ("text", "complete", "ending"),
    [
        (EXPECTED, True, None),
        ("", False, None),
        ("t.0 t.1 t", False, None),
        ("t.0 t.1 t.2", True, Ending.MISSING),
        ("t.0 t.1 t.3 t.4", False, Ending.MISSING),
        ("t.0 t.1 t.1 t.2", False, Ending.REPEATED),
        ("t.0 t.1t.1 t.2", False, Ending.MISSING),
        (f"{EXPECTED} t.11", True, Ending.REPEATED),
        (f"{EXPECTED} {EXPECTED}", False, Ending.REPEATED),
    ],
)
def test_a_text_is_right_or_says_what_is_wrong(
    text: str, complete: bool, ending: Ending | None
) -> None:
    assert compare(EXPECTED, text, complete=complete) is ending


# ---- the ledger


def test_a_silence_is_noted_and_belongs_to_the_time_in_which_it_began() -> None:
    request = Request("stream", EXPECTED, 0.0)
    for at in (1.0, 1.1, 4.1, 4.2, 4.7):
        request.receive(at, "")
    assert request.silences == [(1.1, 4.1), (4.2, 4.7)]
    assert request.longest_silence(1.2, 2.0) == pytest.approx(3.0)
    assert request.longest_silence(2.0, 4.0) == 0.0
    assert request.longest_silence(4.0, 9.0) == pytest.approx(0.5)


@pytest.mark.parametrize(
    ("accepted", "deaths", "broke_at", "ending"),
    [
        (None, [], 10.5, Ending.REFUSED),  # a kept-open connection was being closed
        (None, [], 15.0, Ending.LOST),
        (None, [ApiDeath(12.0)], 15.0, Ending.REFUSED),
        (11.0, [], 15.0, Ending.LOST),
        (11.0, [ApiDeath(12.0, 13.0)], 15.0, Ending.BROKEN),
        (11.0, [ApiDeath(9.0)], 15.0, Ending.BROKEN),  # it was leaving when it took the request
        (
            11.0,
            [ApiDeath(8.0, 9.0), ApiDeath(16.0)],
            15.0,
            Ending.LOST,
        ),  # other requests' deaths are no excuse
    ],
)
def test_a_broken_connection_is_excused_by_the_death_of_the_api_alone(
    accepted: float | None, deaths: list[ApiDeath], broke_at: float, ending: Ending
) -> None:
    ledger = Ledger(api_deaths=deaths)
    request = ledger.open("stream", EXPECTED, 10.0)
    request.accepted = accepted
    assert ledger.judge_broken(request, broke_at) is ending


def test_reasons_are_counted_without_what_makes_them_differ() -> None:
    ledger = Ledger()
    for reason in ("503: job 0123456789abcdef01 of 1.25 s", "503: job fedcba98765432100f of 3.5 s"):
        ledger.refuse(reason)
    assert dict(ledger.refusals) == {"503: job … of … s": 2}


# ---- the tables


def ended(ledger: Ledger, accepted: float, at: float, ending: Ending) -> Request:
    request = ledger.open("stream", EXPECTED, accepted)
    request.accept(accepted)
    request.end(at, ending, "because")
    return request


def column(table: Table, name: str) -> list[Any]:
    return [row[name] for row in table.rows]


def test_a_request_counts_with_each_fault_it_lived_through_and_once_in_all() -> None:
    ledger = Ledger()
    ended(ledger, 0.0, 10.0, Ending.ANSWERED).silences.append((2.0, 5.0))
    ended(ledger, 0.0, 4.0, Ending.LOST)
    ended(ledger, 20.0, 21.0, Ending.ANSWERED)
    incidents = [
        Incident(Fault(2, "kill leaf", "n4"), 2.0, 3.0),
        Incident(Fault(6, "drain", "n5"), 6.0, 8.0),
    ]
    rows = tables.by_fault(ledger, incidents)
    assert column(rows, "fault") == ["kill leaf", "drain", "the whole run"]
    assert column(rows, "accepted") == [2, 1, 3]
    assert column(rows, "answered") == [1, 1, 2]
    assert column(rows, "lost") == [1, 0, 1]
    assert column(rows, "recovery s") == [3.0, 0.0, 3.0]


def test_a_fault_that_could_not_be_made_touched_nobody() -> None:
    ledger = Ledger()
    ended(ledger, 0.0, 10.0, Ending.ANSWERED)
    rows = tables.by_fault(
        ledger, [Incident(Fault(2, "attach", "n4"), 2.0, 3.0, "no such node", injected=False)]
    )
    assert column(rows, "times") == [0, 0]
    assert column(rows, "accepted") == [0, 1]


def test_a_failure_says_when_what_and_what_went_on() -> None:
    ledger = Ledger()
    ended(ledger, 1.0, 4.0, Ending.LOST).ids.append("abc")
    (line,) = tables.failures(ledger, [Incident(Fault(2, "kill leaf", "n4"), 2.0, 3.0)], start=0.0)
    assert line == "lost: stream abc, 1.0-4.0 s, 0 of 12 words, because [kill leaf n4]"


# ---- at rest


def seen(**changed: Any) -> dict[str, Any]:
    return {"name": "n1", "state": "idle", "detail": "", "running": 0, "queued": 0, **changed}


@pytest.mark.parametrize(
    ("nodes", "queues", "problems"),
    [
        ([seen()], {"canopy.node.n1": 0, "canopy.watch.x": 3}, []),
        ([], {}, ["n1 is not in the tree"]),
        ([seen(state="down", detail="gone")], {}, ["n1 is down: gone"]),
        ([seen(running=1)], {}, ["n1 has 1 running and 0 queued"]),
        ([seen()], {"canopy.dead": 1}, ["canopy.dead holds 1 messages"]),
        ([seen()], {"canopy.node.n1": 2}, ["canopy.node.n1 holds 2 messages"]),
    ],
)
def test_what_is_not_at_rest_is_said(
    nodes: list[Any], queues: dict[str, int], problems: list[str]
) -> None:
    listed = [{"name": name, "messages": count} for name, count in queues.items()]
    assert unrest([seen(name="root"), *nodes], listed, Tree({"n1": "root"})) == problems


# ---- growth


def line(level: float, per_hour: float, seconds: int = 600, begin: float = 0.0) -> list[Point]:
    return [(begin + at, level + per_hour * at / 3600) for at in range(0, seconds, 5)]


@given(st.floats(-100, 100), st.floats(-1000, 1000))
def test_a_straight_line_has_its_slope(level: float, per_hour: float) -> None:
    assert growth.slope([line(level, per_hour)]) == pytest.approx(per_hour, rel=1e-6, abs=1e-6)


def test_lives_at_different_levels_share_a_slope_and_a_restart_is_no_growth() -> None:
    flat = [line(100, 0), line(50, 0, begin=600), line(20, 0, begin=1200)]
    assert growth.slope(flat) == pytest.approx(0)
    assert growth.slope([line(100, 6), line(10, 6, begin=600)]) == pytest.approx(6)
    assert growth.slope([[], [(1.0, 5.0)]]) is None


def life(name: str, points: list[Point]) -> Life:
    return Life(name, 1, dict.fromkeys(MEASURES, points))


def test_short_lives_are_left_out_and_nodes_are_one_kind() -> None:
    lives = [life("n1", line(10, 6)), life("n2", line(30, 6)), life("root", line(5, 0))]
    rows = growth.table([*lives, life("n2", line(0, 900, seconds=100))], 3600).rows
    slopes = {(row["process"], row["measure"]): row["slope per hour"] for row in rows}
    assert slopes["node", MEASURES[0]] == pytest.approx(6)
    assert slopes["root", MEASURES[0]] == pytest.approx(0)


def test_the_beginning_and_the_last_sample_of_a_life_are_left_out() -> None:
    growing_up = [(float(at), min(at, 60) * 10.0) for at in range(0, 600, 5)]
    row = growth.table([life("api", [*growing_up, (600.0, 3.0)])], 3600).rows[0]
    assert row["slope per hour"] == pytest.approx(0)
    assert row["mean"] == 600


def test_a_process_is_measured_and_one_that_is_gone_is_not() -> None:
    me = ProcessRecord.of("me", os.getpid())
    values = growth.read_process(me)
    assert values.keys() == set(MEASURES)
    assert all(value > 0 for value in values.values())
    assert growth.read_process(ProcessRecord("stranger", os.getpid(), me.started - 60)) == {}


# ---- users, on scripted answers


class Script(httpx.AsyncByteStream):
    """A body in pieces; an exception among them breaks the connection."""

    def __init__(self, pieces: Sequence[bytes | Exception]) -> None:
        self._pieces = pieces

    async def __aiter__(self) -> AsyncIterator[bytes]:
        for piece in self._pieces:
            if isinstance(piece, Exception):
                raise piece
            yield piece


def event(payload: Any) -> bytes:
    return (
        b"data: "
        + (payload if isinstance(payload, bytes) else json.dumps(payload).encode())
        + b"\n\n"
    )


def delta(text: str) -> bytes:
    return event({"choices": [{"delta": {"content": text}}]})


USAGE = event({"choices": [], "usage": {"completion_tokens": 12}})
DONE = event(b"[DONE]")
GONE = httpx.ReadError("gone")
HALF = len(EXPECTED) // 2


async def asked_by(
    number: int, *answers: httpx.Response | Exception, api_died: bool = False
) -> Request:
    """What became of one question of user `number`, to whom these answers come in turn."""
    script = iter(answers)

    async def answer(_request: httpx.Request) -> httpx.Response:
        found = next(script)
        if isinstance(found, Exception):
            raise found
        return found

    ledger = Ledger()
    async with httpx.AsyncClient(
        transport=httpx.MockTransport(answer), base_url="http://canopy"
    ) as client:
        user = User(number, Service("echo", client), ledger, random.Random(0))
        request = ledger.open(user.kind, EXPECTED, asyncio.get_running_loop().time())
        if api_died:
            ledger.api_deaths.append(ApiDeath(request.began))
        await user.ask(request)
    assert next(script, None) is None
    return request


def stream(*pieces: bytes | Exception) -> httpx.Response:
    return httpx.Response(200, stream=Script(pieces), headers={"X-Request-Id": "r1"})


@pytest.mark.parametrize(
    ("pieces", "ending"),
    [
        ([delta(EXPECTED[:HALF]), delta(EXPECTED[HALF:]), USAGE, DONE], Ending.ANSWERED),
        (
            [delta(EXPECTED), event({"choices": [], "usage": {"completion_tokens": 1}}), DONE],
            Ending.MISCOUNTED,
        ),
        ([delta(EXPECTED[:HALF]), USAGE, DONE], Ending.MISSING),
        ([delta(EXPECTED), delta(" t.11"), USAGE, DONE], Ending.REPEATED),
        ([delta(EXPECTED), event({"error": {"message": "given up"}})], Ending.ERROR),
        ([delta("t.0 t.0"), event({"error": {"message": "given up"}})], Ending.REPEATED),
        ([delta(EXPECTED)], Ending.LOST),
        ([delta(EXPECTED[:HALF]), GONE], Ending.LOST),
    ],
)
async def test_how_a_stream_ends(pieces: list[bytes | Exception], ending: Ending) -> None:
    request = await asked_by(0, stream(*pieces))
    assert request.kind == "stream"
    assert request.ending is ending
    assert request.ids == ["r1"]


async def test_a_stream_broken_by_the_death_of_the_api_is_not_lost() -> None:
    assert (
        await asked_by(0, stream(delta(EXPECTED[:HALF]), GONE), api_died=True)
    ).ending is Ending.BROKEN


async def test_wrong_text_is_not_excused_by_the_death_of_the_api() -> None:
    assert (
        await asked_by(0, stream(delta("t.0 t.2"), GONE), api_died=True)
    ).ending is Ending.MISSING


@pytest.mark.parametrize(
    ("status", "headers", "ending"),
    [
        (503, {"Retry-After": "0"}, Ending.REFUSED),
        (429, {"Retry-After": "0"}, Ending.REFUSED),
        (503, {"X-Request-Id": "r1"}, Ending.ERROR),  # a job that had been accepted
        (500, {}, Ending.ERROR),
    ],
)
async def test_how_a_refusal_ends(status: int, headers: dict[str, str], ending: Ending) -> None:
    assert (await asked_by(5, httpx.Response(status, headers=headers))).ending is ending


async def test_who_cancels_leaves_in_the_middle() -> None:
    request = await asked_by(4, stream(delta(EXPECTED[:HALF]), delta(EXPECTED[HALF:]), GONE))
    assert request.kind == "cancel"
    assert request.ending is Ending.CANCELLED


async def test_a_key_is_tried_again_until_there_is_an_answer() -> None:
    answers = [
        stream(delta(EXPECTED[:HALF]), GONE),
        GONE,
        httpx.Response(503, headers={"Retry-After": "0"}),
    ]
    request = await asked_by(2, *answers, stream(delta(EXPECTED), USAGE, DONE))
    assert request.kind == "keyed"
    assert request.ending is Ending.ANSWERED
    assert request.retries == 3
