"""Dead letters, on the in-memory twin: read, shown, dropped, given back."""

import json
import time
from collections.abc import Mapping

import pytest

from broker import dead_letters
from broker.memory import MemoryBroker, MemorySession
from broker.wire import ChatMessage, Job, Sampling, encode
from cli.commands import dead as commands
from cli.errors import CliError
from topology import names

JOB = Job(
    request_id="r1",
    model="echo",
    reply_to="canopy.reply.gone",
    created=1.0,
    messages=(ChatMessage(role="user", content="hello"),),
    sampling=Sampling(seed=7),
    user="ann",
    attempt=4,
    restarted=True,
    seconds_left=2.0,
    trail=("root", "n1"),
    delivered="hel",
    delivered_ids=(1, 2),
)
HEADERS: Mapping[str, object] = {
    "reason": "lost 3 times",
    "node": "n1",
    "at": "1700000000.5",
    "request_id": "r1",
    "trail": ["root", "n1"],
    "faults": ["n1 died"],
}


@pytest.fixture
def broker() -> MemoryBroker:
    return MemoryBroker()


async def session_with(
    broker: MemoryBroker, *letters: tuple[bytes, Mapping[str, object]]
) -> MemorySession:
    session = broker.session()
    await session.declare_queue(names.DEAD_QUEUE)
    for body, headers in letters:
        broker.put("", names.DEAD_QUEUE, body, headers)
    return session


def depth(broker: MemoryBroker) -> int:
    return len(broker.queues[names.DEAD_QUEUE].ready)


async def test_a_job_has_its_requests_id_and_garbage_a_hash_of_its_own(
    broker: MemoryBroker,
) -> None:
    session = await session_with(
        broker, (encode(JOB), HEADERS), (b"\xff{", {"reason": "x"}), (b"\xff{", {})
    )
    job, first, second = await dead_letters.read_letters(session)
    assert (job.id, job.job, job.reason, job.node, job.at) == (
        "r1",
        JOB,
        "lost 3 times",
        "n1",
        1_700_000_000.5,
    )
    assert (first.job, first.reason, first.node, first.at) == (None, "x", "", None)
    assert second.reason == "unknown"
    assert len({first.id, second.id}) == 2
    assert len(first.id) == 12


async def test_reading_changes_nothing(broker: MemoryBroker) -> None:
    session = await session_with(broker, *((b"%d" % number, {}) for number in range(3)))
    assert [letter.delivery.body for letter in await dead_letters.read_letters(session)] == [
        b"0",
        b"1",
        b"2",
    ]
    assert depth(broker) == 0
    await session.close()
    assert [message.body for message in broker.queues[names.DEAD_QUEUE].ready] == [b"0", b"1", b"2"]


async def test_dropped_letters_are_gone_and_others_stay(broker: MemoryBroker) -> None:
    session = await session_with(broker, *((b"%d" % number, {}) for number in range(3)))
    letters = await dead_letters.read_letters(session)
    letters[1].drop()
    letters[0].give_back()
    await session.close()
    assert [message.body for message in broker.queues[names.DEAD_QUEUE].ready] == [b"0", b"2"]


async def test_letters_that_come_meanwhile_are_left_alone(broker: MemoryBroker) -> None:
    session = await session_with(broker, (b"early", {}))
    (early,) = await dead_letters.read_letters(session)
    broker.put("", names.DEAD_QUEUE, b"late", {})
    early.drop()
    await session.close()
    assert [message.body for message in broker.queues[names.DEAD_QUEUE].ready] == [b"late"]


async def test_no_queue_is_no_letters(broker: MemoryBroker) -> None:
    assert await dead_letters.read_letters(broker.session()) == []


def test_a_replayed_job_is_asked_anew() -> None:
    again = dead_letters.to_replay(JOB, "r2", 9.0)
    assert (again.request_id, again.created, again.attempt, again.restarted) == (
        "r2",
        9.0,
        1,
        False,
    )
    assert (again.delivered, again.delivered_ids, again.trail, again.seconds_left) == (
        "",
        (),
        (),
        None,
    )
    assert (again.model, again.messages, again.sampling, again.user) == (
        "echo",
        JOB.messages,
        JOB.sampling,
        "ann",
    )


async def test_the_list_is_aligned_and_harmless(
    broker: MemoryBroker, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TZ", "UTC")
    time.tzset()
    session = await session_with(
        broker, (encode(JOB), HEADERS), (b"x", {"reason": "bad \x1b[31m\nbytes", "at": "?"})
    )
    described = [commands.describe(letter) for letter in await dead_letters.read_letters(session)]
    assert json.loads(json.dumps(described))[0] == {
        "id": "r1",
        "when": 1_700_000_000.5,
        "model": "echo",
        "user": "ann",
        "node": "n1",
        "reason": "lost 3 times",
    }
    head, first, second = commands.table(described)
    assert head.split() == ["id", "when", "model", "user", "node", "reason"]
    assert first.split() == [
        "r1",
        "2023-11-14",
        "22:13:20",
        "echo",
        "ann",
        "n1",
        "lost",
        "3",
        "times",
    ]
    assert second.endswith("-     -     bad  [31m bytes")
    assert head.index("reason") == first.index("lost") == second.index("bad")
    assert commands.table([]) == ["No dead letters."]


async def test_a_letter_is_shown_whole(broker: MemoryBroker) -> None:
    session = await session_with(
        broker, (encode(JOB), HEADERS), (b"\xff\x1b", {"reason": "no job"})
    )
    job, garbage = await dead_letters.read_letters(session)
    shown = commands.full_text(job)
    assert "trail      root, n1" in shown
    assert "faults     n1 died" in shown
    assert json.loads(shown.partition("\n\n")[2])["messages"] == [
        {"role": "user", "content": "hello"}
    ]
    assert commands.full_text(garbage).endswith("b'\\xff\\x1b'")


async def test_dropping_is_all_or_nothing(broker: MemoryBroker) -> None:
    session = await session_with(broker, (encode(JOB), HEADERS), (b"x", {}))
    letters = await dead_letters.read_letters(session)
    with pytest.raises(CliError, match="There is no dead letter 'nope'"):
        commands.drop_letters(letters, ["r1", "nope"])
    assert not any(letter.delivery.settled for letter in letters)
    assert commands.drop_letters(letters, ["r1"]) == 1
    assert [letter.delivery.settled for letter in letters] == [True, False]
    assert commands.drop_letters(letters, []) == 2
