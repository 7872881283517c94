"""`./canopy dead` on a real broker: letters are shown, replayed and dropped."""

import asyncio
import json
import os
import subprocess
import sys
import time
import uuid
from collections.abc import Iterator
from tempfile import TemporaryDirectory

import pytest

from broker.amqp import AmqpSession
from broker.encoding import encode
from broker.wire import ChatMessage, Job, Sampling
from cli.home import REPOSITORY
from cli.rabbitmq import Broker
from tests.realbroker import echo_node, root
from topology import names

SECONDS = 30.0
UNRECORDED = (
    "canopy: this is not recorded in the audit log: this machine has no database of Canopy\n"
)


@pytest.fixture
def model(broker: Broker) -> Iterator[str]:
    """A tree of its own: mortuary -> m1."""
    with (
        root(broker, "mortuary", "mortal"),
        echo_node(broker, "m1", "mortuary", "--model", "mortal"),
    ):
        yield "mortal"


def dead(broker: Broker, *words: str) -> subprocess.CompletedProcess[str]:
    """Runs `./canopy dead ...` with an administrator's address, and without a database."""
    clean = {name: value for name, value in os.environ.items() if not name.startswith("CANOPY_")}
    clean.pop("DATABASE_URL", None)
    with TemporaryDirectory() as home:
        return subprocess.run(
            [sys.executable, "-m", "cli", "dead", *words],
            cwd=REPOSITORY,
            env={**clean, "CANOPY_HOME": home, "CANOPY_AMQP_URL": broker.amqp["admin"]},
            capture_output=True,
            text=True,
            timeout=SECONDS,
            check=False,
        )


def complaint(ran: subprocess.CompletedProcess[str]) -> str:
    """What the command says on standard error after the notice that nobody records it."""
    assert ran.stderr.count(UNRECORDED) == 1
    assert ran.stderr.startswith(UNRECORDED)
    return ran.stderr.removeprefix(UNRECORDED)


def letters(broker: Broker) -> list[dict[str, object]]:
    listed = dead(broker, "list", "--json")
    assert listed.returncode == 0, listed.stderr
    found: list[dict[str, object]] = json.loads(listed.stdout)["letters"]
    return found


async def put(
    broker: Broker, queue: str, body: bytes, headers: dict[str, object], depth_of_dead: int
) -> None:
    """Publishes, and returns when that many letters are dead."""
    session = await AmqpSession.open(broker.amqp["admin"], "test")
    try:
        await session.declare_queue(names.DEAD_QUEUE)  # as every node does
        assert await session.publish("", queue, body, persistent=True, headers=headers)
        async with asyncio.timeout(SECONDS):
            while await session.depth(names.DEAD_QUEUE) != depth_of_dead:  # noqa: ASYNC110 - there is no event for it
                await asyncio.sleep(0.05)
    finally:
        await session.close()


async def test_what_is_no_job_is_listed_shown_and_dropped(broker: Broker, model: str) -> None:
    present = letters(broker)
    await put(broker, names.node("m1"), b'{"request_id": \xff', {}, len(present) + 1)
    (letter,) = [each for each in letters(broker) if each not in present]
    assert letter["node"] == "m1"
    assert letter["model"] is None
    assert "undecodable" in str(letter["reason"])
    assert isinstance(letter["when"], float)
    letter_id = str(letter["id"])

    assert letter_id in dead(broker, "list").stdout
    assert "b'{\"request_id\": \\xff'" in dead(broker, "show", letter_id).stdout
    refused = dead(broker, "replay", letter_id)
    assert refused.returncode == 1
    assert complaint(refused).startswith(f"canopy: {letter_id} is not a job (undecodable")
    assert letters(broker) == [*present, letter], "looking changes nothing"

    assert dead(broker, "drop", letter_id).stdout == "dropped 1\n"
    assert letters(broker) == present
    gone = dead(broker, "show", letter_id)
    assert (gone.returncode, gone.stdout) == (1, "")
    assert (
        complaint(gone)
        == f"canopy: There is no dead letter {letter_id!r} (./canopy dead list shows them)\n"
    )


def a_job(model: str) -> Job:
    message = ChatMessage(role="user", content="rise and shine")
    return Job(
        request_id=uuid.uuid4().hex,
        model=model,
        reply_to=names.reply("gone"),
        created=time.time() - 3600,
        messages=(message,),
        sampling=Sampling(max_tokens=3),
        user="ann",
        attempt=4,
        restarted=True,
        deadline=time.time() - 3000,
        delivered="rise",
        trail=("mortuary", "m1"),
    )


async def test_a_job_is_replayed_from_its_beginning_and_its_letter_dropped(
    broker: Broker, model: str
) -> None:
    present = letters(broker)
    job = a_job(model)
    headers: dict[str, object] = {
        "reason": "lost 3 times",
        "node": "m1",
        "at": str(time.time()),
        "trail": ["mortuary"],
    }
    await put(broker, names.DEAD_QUEUE, encode(job), headers, len(present) + 1)
    shown = dead(broker, "show", job.request_id).stdout
    assert "lost 3 times" in shown
    assert "rise and shine" in shown

    answered = dead(broker, "replay", job.request_id)
    assert (answered.returncode, answered.stdout) == (0, "rise and shine\n")
    assert complaint(answered) == ""
    assert letters(broker) == present


async def test_a_job_that_nobody_can_run_keeps_its_letter(broker: Broker) -> None:
    present = letters(broker)
    job = a_job("no-such-model")
    await put(
        broker,
        names.DEAD_QUEUE,
        encode(job),
        {"reason": "x", "node": "m1", "at": str(time.time())},
        len(present) + 1,
    )
    failed = dead(broker, "replay", job.request_id)
    assert failed.returncode == 1
    assert (
        complaint(failed)
        == "canopy: There is no tree of the model 'no-such-model' now; the letter stays.\n"
    )
    assert [each["id"] for each in letters(broker)] == [
        *(each["id"] for each in present),
        job.request_id,
    ]
    assert dead(broker, "drop", "--all").returncode == 0
    assert letters(broker) == []


async def test_who_has_not_the_right_to_read_is_told_so(broker: Broker) -> None:
    await put(broker, names.DEAD_QUEUE, b"x", {"reason": "x"}, len(letters(broker)) + 1)
    refused = dead(Broker(amqp={"admin": broker.amqp["node"]}, management={}), "drop", "--all")
    assert (refused.returncode, refused.stdout) == (1, "")
    assert complaint(refused).startswith("canopy: ACCESS_REFUSED")
    assert complaint(refused).count("\n") == 1
    assert dead(broker, "drop", "--all").stdout == "dropped 1\n"


async def test_a_job_is_changed_and_several_are_replayed(broker: Broker, model: str) -> None:
    present = letters(broker)
    jobs = [a_job(model), a_job("no-such-model")]
    for number, job in enumerate(jobs, len(present) + 1):
        await put(broker, names.DEAD_QUEUE, encode(job), {"reason": "x"}, number)
    first, second = (job.request_id for job in jobs)

    several = dead(broker, "replay", first, second, "--json")
    assert several.returncode == 1
    assert complaint(several) == "canopy: 1 of 2 failed; their letters stay.\n"
    answered, failed = json.loads(several.stdout)["replays"]
    assert (answered["id"], answered["text"], answered["tokens"]) == (first, "rise and shine", 3)
    assert (failed["id"], failed["tokens"]) == (second, 0)
    assert [each["id"] for each in letters(broker)] == [*(each["id"] for each in present), second]

    refused = dead(broker, "edit", second, "--model", "m" * 300)
    assert (refused.returncode, complaint(refused)) == (2, "canopy: model: not a model's name\n")
    edited = dead(
        broker, "edit", second, "--model", model, "--prompt", "get up", "--max-tokens", "2"
    )
    assert (edited.returncode, edited.stdout, complaint(edited)) == (0, "get up\n", "")
    assert json.loads(dead(broker, "drop", "--all", "--json").stdout) == {"dropped": len(present)}
