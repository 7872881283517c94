"""`bench chaos`: schedule, ledger, report, growth, and its users on scripted answers."""

import asyncio
import json
import random
import time
from collections.abc import AsyncIterator, Sequence
from typing import Any

import httpx
import pytest

from bench.chaos import command, growth, schedule, users
from bench.chaos.command import Run
from bench.chaos.faults import Incident, unrest
from bench.chaos.ledger import ApiDeath, Ending, Ledger, Request, numbered_words
from bench.chaos.schedule import KINDS, Fault
from bench.chaos.users import User
from bench.report import Report

EXPECTED = numbered_words("t", 12)


@pytest.mark.parametrize("seed", range(20))
def test_a_seed_decides_the_faults_and_every_kind_has_its_turn(seed: int) -> None:
    faults = schedule.make(seed, 600, 3.0, list(KINDS))
    assert faults == schedule.make(seed, 600, 3.0, list(KINDS))
    assert len(faults) == 30
    assert {fault.kind for fault in faults[: len(KINDS)]} == set(KINDS)
    assert [fault.at for fault in faults] == sorted(fault.at for fault in faults)
    for fault in faults:
        assert schedule.CALM <= fault.at < 600
        least, most = KINDS[fault.kind]
        assert least <= fault.seconds <= most
        hits_a_node = fault.kind == "drain" or fault.kind.endswith("node")
        assert (fault.target in schedule.NAMES) == hits_a_node


def test_a_silence_is_noted_and_belongs_to_the_time_in_which_it_began() -> None:
    ledger = Ledger()
    request = ledger.open("stream", EXPECTED, 0.0)
    for at in (1.0, 1.1, 4.1, 4.2, 4.7):
        request.receive(at, "")
    assert request.silences == [(1.1, 4.1), (4.2, 4.7)]
    assert ledger.longest_silence(1.2, 2.0) == pytest.approx(3.0)
    assert ledger.longest_silence(2.0, 4.0) == 0.0


@pytest.mark.parametrize(
    ("accepted", "deaths", "broke_at", "ending"),
    [
        (None, [], 10.5, Ending.REFUSED),  # a kept-open connection was being closed
        (None, [], 15.0, Ending.LOST),
        (None, [ApiDeath(12.0)], 15.0, Ending.REFUSED),
        (11.0, [], 15.0, Ending.LOST),
        (11.0, [ApiDeath(12.0, 13.0)], 15.0, Ending.BROKEN),
        (11.0, [ApiDeath(9.0)], 15.0, Ending.BROKEN),  # it was leaving when it took the request
        (11.0, [ApiDeath(8.0, 9.0), ApiDeath(16.0)], 15.0, Ending.LOST),  # other requests' deaths
    ],
)
def test_a_broken_connection_is_excused_by_the_death_of_the_api_alone(
    accepted: float | None, deaths: list[ApiDeath], broke_at: float, ending: Ending
) -> None:
    ledger = Ledger(api_deaths=deaths)
    request = ledger.open("stream", EXPECTED, 10.0)
    request.accepted = accepted
    assert ledger.judge_broken(request, broke_at) is ending


def test_the_report_has_faults_endings_and_what_was_broken() -> None:
    run = Run()
    for began, ended, ending in ((0.0, 10.0, Ending.ANSWERED), (1.0, 4.0, Ending.LOST)):
        request = run.ledger.open("stream", EXPECTED, began)
        request.accepted, request.request_id = began, "abc"
        request.silences.append((2.0, began + 5.0))
        request.end(ended, ending, "because")
    kill, drain = Fault(2, "kill node", "n4"), Fault(6, "drain", "n5")
    run.incidents = [Incident(kill, 2.0, 3.0), Incident(drain, 6.0, 8.0, "n5 is away")]
    run.unrest = ["n1 has 1 running and 0 queued"]
    report = Report("chaos", {})
    assert len(command.fill(report, run)) == 3
    faults, endings = report.tables
    assert [row["fault"] for row in faults.rows] == ["kill node n4", "drain n5"]
    assert [row["recovery s"] for row in faults.rows] == [4.0, 0.0]
    assert (endings.rows[0]["answered"], endings.rows[0]["lost"]) == (1, 1)
    assert report.notes[:3] == [
        "BROKEN PROMISE: lost: stream abc, 1.0-4.0 s, because",
        f"NOT HEALED: {drain}: n5 is away",
        "NOT AT REST: n1 has 1 running and 0 queued",
    ]
    assert not command.fill(Report("chaos", {}), Run())


def node(**changed: Any) -> dict[str, Any]:
    return {"name": "n1", "state": "idle", "detail": "", "running": 0, "queued": 0, **changed}


def test_what_is_not_at_rest_is_said() -> None:
    others = [node(name=name) for name in ("root", *schedule.NAMES[1:])]
    assert unrest([*others, node()]) == []
    assert unrest(others) == ["n1 is not in the tree"]
    assert unrest([*others, node(state="down", detail="gone")]) == ["n1 is down: gone"]
    assert unrest([*others, node(queued=1)]) == ["n1 has 0 running and 1 queued"]


# ---- growth


def test_lives_have_a_slope_without_their_warm_up_and_their_last_sample() -> None:
    moments = [float(at) for at in range(0, 600, 5)]
    lives = {
        ("api", 1): [*((at, min(at, 60) * 10.0) for at in moments), (600.0, 3.0)],
        ("node", 2): [(at, 10 + 4 * at / 3600) for at in moments],
        ("node", 3): [(at, 900 * at / 3600) for at in moments[:20]],  # too short
    }
    api, node = growth.table(lives, 3600).rows
    assert (api["MB an hour"], api["most MB"]) == (pytest.approx(0), 600)
    assert (node["MB an hour"], node["seconds"]) == (pytest.approx(4), 595)


# ---- users, on scripted answers


@pytest.fixture(autouse=True)
def no_pauses(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(users, "PAUSE", 0.0)


async def body(pieces: Sequence[bytes | Exception]) -> AsyncIterator[bytes]:
    """An exception among the pieces breaks the connection."""
    for piece in pieces:
        if isinstance(piece, Exception):
            raise piece
        yield piece


def event(payload: object) -> bytes:
    return b"data: " + json.dumps(payload).encode() + b"\n\n"


def delta(text: str) -> bytes:
    return event({"choices": [{"delta": {"content": text}}]})


USAGE = event({"choices": [], "usage": {"completion_tokens": 12}})
MISCOUNTED = event({"choices": [], "usage": {"completion_tokens": 1}})
GIVEN_UP = event({"error": {"message": "given up"}})
DONE = b"data: [DONE]\n\n"
GONE = httpx.ReadError("gone")
HALF = len(EXPECTED) // 2
FIRST, SECOND = delta(EXPECTED[:HALF]), delta(EXPECTED[HALF:])


async def asked_by(
    number: int, *answers: httpx.Response | Exception, api_died: bool = False
) -> Request:
    """What became of one question of user `number`, to whom these answers come in turn."""
    script = iter(answers)

    async def answer(_request: httpx.Request) -> httpx.Response:
        scripted = next(script)
        if isinstance(scripted, Exception):
            raise scripted
        return scripted

    ledger = Ledger()
    transport = httpx.MockTransport(answer)
    async with httpx.AsyncClient(transport=transport, base_url="http://canopy") as client:
        user = User(number, client, "echo", ledger, random.Random(0))
        request = ledger.open(user.kind, EXPECTED, asyncio.get_running_loop().time())
        if api_died:
            ledger.api_deaths.append(ApiDeath(request.began))
        await user.ask(request)
    assert next(script, None) is None
    return request


def stream(*pieces: bytes | Exception) -> httpx.Response:
    return httpx.Response(200, content=body(pieces), headers={"X-Request-Id": "r1"})


@pytest.mark.parametrize(
    ("pieces", "api_died", "ending"),
    [
        ([FIRST, SECOND, USAGE, DONE], False, Ending.ANSWERED),
        ([FIRST, SECOND, MISCOUNTED, DONE], False, Ending.WRONG),
        ([FIRST, USAGE, DONE], False, Ending.WRONG),
        ([FIRST, SECOND, delta(" t.11"), USAGE, DONE], False, Ending.WRONG),
        ([FIRST, GIVEN_UP], False, Ending.ERROR),
        ([delta("t.0 t.0"), GIVEN_UP], False, Ending.WRONG),
        ([FIRST, SECOND], False, Ending.LOST),
        ([FIRST, GONE], False, Ending.LOST),
        ([FIRST, GONE], True, Ending.BROKEN),
        ([delta("t.0 t.2"), GONE], True, Ending.WRONG),  # which the death does not excuse
    ],
)
async def test_how_a_stream_ends(
    pieces: list[bytes | Exception], api_died: bool, ending: Ending
) -> None:
    request = await asked_by(0, stream(*pieces), api_died=api_died)
    assert (request.kind, request.ending, request.request_id) == ("stream", ending, "r1")


async def test_only_what_was_not_accepted_is_a_refusal() -> None:
    refused = httpx.Response(503, headers={"Retry-After": "0"})
    accepted = httpx.Response(503, headers={"X-Request-Id": "r1"})
    assert (await asked_by(5, refused)).ending is Ending.REFUSED
    assert (await asked_by(5, accepted)).ending is Ending.ERROR
    assert (await asked_by(5, httpx.Response(500))).ending is Ending.ERROR


async def test_a_whole_answer_is_read_and_who_cancels_leaves_in_the_middle() -> None:
    answer = {"choices": [{"message": {"content": EXPECTED}}], "usage": {"completion_tokens": 12}}
    assert (await asked_by(5, httpx.Response(200, json=answer))).ending is Ending.ANSWERED
    assert (await asked_by(4, stream(FIRST, SECOND, GONE))).ending is Ending.CANCELLED


async def test_a_key_is_tried_again_until_there_is_an_answer() -> None:
    answers = [stream(FIRST, GONE), GONE, httpx.Response(503, headers={"Retry-After": "0"})]
    request = await asked_by(2, *answers, stream(FIRST, SECOND, USAGE, DONE))
    assert (request.kind, request.ending) == ("keyed", Ending.ANSWERED)


def test_what_is_open_when_time_is_up_is_named_and_lost() -> None:
    run = Run(120.0, 1, 2, start=time.monotonic() - 270.0)
    fault = Fault(60.0, "kill node", "n1")
    run.faults = [fault]
    run.ledger.open("stream", EXPECTED, run.start).end(run.start + 1, Ending.ANSWERED)
    request = run.ledger.open("stream", EXPECTED, run.start + 60)
    assert command.unfinished(run) == [f"{fault} has not healed"]
    assert request.ending is Ending.LOST
    assert run.ledger.endings()["lost"] == 1
