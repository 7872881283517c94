"""`bench hello`: the original load test. Ten "Hello" at once to /arranca/: who ran them, how long, all right?

Whether a request waited while a slot was free is decided from the broker's own record (`firehose.py`): a request
waits from its job's entry into `canopy.jobs` until a node with a free slot takes it, or, if a node held it first,
until its first frame; it holds the slot until its last frame. See `occupancy.py` for the rule.
"""

import asyncio
import json
import time
from dataclasses import dataclass
from typing import Annotated, Any

import typer

from bench import firehose, instance, occupancy, report, web
from bench.firehose import Trail
from bench.instance import Instance
from bench.occupancy import Times
from bench.report import Report, Rows

TEXT = "Hello"


@dataclass(frozen=True, slots=True)
class Reply:
    """One answer of /arranca/."""

    request_id: str
    seconds: float
    text: str
    right: bool
    wrong_because: str = ""


def command(
    requests: Annotated[int, typer.Option(min=1, help="Requests sent at once.")] = 10,
    nodes: Annotated[int, typer.Option(min=1, help="Worker processes.")] = 4,
    slots: Annotated[
        int, typer.Option(min=1, help="Answers a worker writes at the same time.")
    ] = 2,
    tokens: Annotated[int, typer.Option(min=1, help="Length of each answer.")] = 20,
    engine: Annotated[str, typer.Option(help="echo or transformers.")] = "echo",
    model: Annotated[str | None, typer.Option(help="Model, for transformers.")] = None,
    token_delay: Annotated[
        float, typer.Option(min=0, help="echo: seconds between words, so that runs overlap.")
    ] = 0.05,
    fanout: Annotated[int | None, typer.Option(min=1, help="Children a node at most.")] = None,
    policy: Annotated[str | None, typer.Option(help="Dispatch rule.")] = None,
    tolerance: Annotated[
        float | None,
        typer.Option(
            min=0, help="Seconds a job may take to a free slot; default: 0.1, for a model 1."
        ),
    ] = None,
    json_file: report.JsonOption = None,
) -> None:
    """Ten "Hello" at once through /arranca/: each one's node and time, all right or not, no slot left free."""
    # a held job is seen to start with its first frame, which a model sends after the prompt
    allowed = tolerance if tolerance is not None else 0.1 if engine == "echo" else 1.0
    settings = {
        "requests": requests, "nodes": nodes, "slots": slots, "tokens": tokens, "engine": engine, "model": model,
        "token_delay": token_delay, "fanout": fanout, "policy": policy, "tolerance": allowed,
    }  # fmt: skip
    result = Report("hello", settings)
    options = ["--engine", engine, "--nodes", str(nodes), "--slots", str(slots)]
    options += ["--token-delay", str(token_delay)] if engine == "echo" else []
    for name, value in (("--model", model), ("--fanout", fanout), ("--policy", policy)):
        options += [name, str(value)] if value else []
    with instance.running(*options) as canopy:
        exact = " ".join([TEXT] * tokens) if engine == "echo" else None
        replies, trails, total = asyncio.run(_ask_all(canopy, requests, tokens, exact))
    good = _tell(result, replies, trails, total, nodes * slots, allowed)
    result.finish(json_file)
    raise typer.Exit(0 if good else 1)


async def _ask_all(
    canopy: Instance, count: int, tokens: int, exact: str | None
) -> tuple[list[Reply], list[Trail], float]:
    """Sends all at once, after one request that warms everything up."""
    connections = [await web.Connection.open(canopy.port) for _ in range(count)]
    await _ask(connections[0], canopy, -1, tokens, exact)
    async with firehose.watching(canopy) as seen:
        began = time.perf_counter()
        asked = (
            _ask(connection, canopy, index, tokens, exact)
            for index, connection in enumerate(connections)
        )
        replies = await asyncio.gather(*asked)
        total = time.perf_counter() - began
        await seen.until_ended([reply.request_id for reply in replies if reply.request_id])
    for connection in connections:
        connection.close()
    return replies, [seen.trails.get(reply.request_id, Trail()) for reply in replies], total


async def _ask(
    connection: web.Connection, canopy: Instance, index: int, tokens: int, exact: str | None
) -> Reply:
    timestamp = f"{time.time():.6f}/{index}"
    body = json.dumps({"text": TEXT, "timestamp": timestamp, "max_tokens": tokens}).encode()
    began = time.perf_counter()
    try:
        answer = await connection.ask(
            web.request("POST", "/arranca/", canopy.port, canopy.key, body)
        )
    except (web.Refused, ConnectionError) as error:
        return Reply("", time.perf_counter() - began, "", False, str(error))
    return judge(json.loads(answer.body), answer.ended - began, timestamp, exact)


def judge(answer: dict[str, Any], seconds: float, timestamp: str, exact: str | None) -> Reply:
    """What a model says cannot be known; that it says something can. The timestamp comes back untouched."""
    text = answer["text"]
    wrong = ""
    if answer["timestamp"] != timestamp:
        wrong = f"timestamp {answer['timestamp']}"
    elif not text or (exact is not None and text != exact):
        wrong = f"text {text!r}"
    return Reply(answer["request_id"], seconds, text, not wrong, wrong)


def _tell(
    result: Report,
    replies: list[Reply],
    trails: list[Trail],
    total: float,
    slots: int,
    tolerance: float,
) -> bool:
    """Fills the report; True if every answer was right and nobody is known to have waited beside a free slot."""
    seen = [trail.times() for trail in trails]
    known = [times for times in seen if times is not None]
    beside = dict(zip(known, occupancy.waited_beside_a_free_slot(known, slots), strict=True))
    longest = max(beside.values(), default=0.0)
    right = all(reply.right for reply in replies) and len(
        {reply.request_id for reply in replies}
    ) == len(replies)
    result.tables += [_requests(replies, trails, seen, beside), _nodes(known)]
    result.facts |= {
        "total_seconds": round(total, 4), "all_right": right, "seen": len(known),
        "longest_wait_beside_a_free_slot_seconds": round(longest, 4),
        "nobody_waited_beside_a_free_slot": longest <= tolerance if len(known) == len(replies) else None,
    }  # fmt: skip
    result.notes += _verdicts(result, len(replies), slots, tolerance)
    return right and result.facts["nobody_waited_beside_a_free_slot"] is not False


def _requests(
    replies: list[Reply], trails: list[Trail], seen: list[Times | None], beside: dict[Times, float]
) -> Rows:
    rows = [
        (
            index,
            trail.node or "?",
            trail.path,
            _ms(times.started - times.entered) if times else None,
            _ms(beside[times]) if times else None,
            _ms(times.ended - times.started) if times else None,
            _ms(reply.seconds),
            "yes" if reply.right else f"no: {reply.wrong_because}",
        )
        for index, (reply, trail, times) in enumerate(zip(replies, trails, seen, strict=True), 1)
    ]
    columns = (
        "#",
        "node",
        "path",
        "waited ms",
        "of it beside a free slot",
        "ran ms",
        "HTTP ms",
        "right",
    )
    return Rows(f'{len(replies)} times "{TEXT}" at once', columns, rows, digits=1)


def _nodes(known: list[Times]) -> Rows:
    peaks = occupancy.most_at_once(known)
    rows = [(node, sum(each.node == node for each in known), peak) for node, peak in peaks.items()]
    return Rows("nodes", ("node", "requests", "most at once"), rows)


def _verdicts(result: Report, count: int, slots: int, tolerance: float) -> list[str]:
    facts = result.facts
    longest = 1000 * float(str(facts["longest_wait_beside_a_free_slot_seconds"]))
    free = {True: "yes", False: "NO", None: "not known, not every request was seen"}
    nobody = facts["nobody_waited_beside_a_free_slot"]
    verdict = free[nobody if isinstance(nobody, bool) else None]
    return [
        f"total {facts['total_seconds']} s for {count} requests on {slots} slots; all right: "
        + ("yes" if facts["all_right"] else "NO"),
        f"no request waited while a slot was free: {verdict} "
        f"(longest {longest:.1f} ms, the way to a slot included; allowed {1000 * tolerance:.0f} ms)",
        "node, path and times are from RabbitMQ's firehose as it reached the benchmark. A job that a node held counts "
        "as started with its first frame, for a model only after its prompt was read.",
    ]


def _ms(seconds: float) -> float:
    return round(seconds * 1000, 3)
